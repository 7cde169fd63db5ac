"""The ``graphopt`` command.

Exit status: 0 done; 1 it ran and the answer is no (an invalid outcome, a failed check); 2 bad input, said in one line
on standard error. With ``--json``, standard output holds one JSON object and nothing else.
"""

from __future__ import annotations

import sys

# packages that only some commands need, and the extra that brings each
EXTRAS = {
    "torch": "torch",
    "onnx": "onnx",
    "stable_baselines3": "agents",
    "sb3_contrib": "agents",
    "torch_geometric": "agents",
}


def main() -> None:
    """The entry point: runs a command, turns bad input into one line and exit status 2."""
    from graphopt_gym.cli.app import app
    from graphopt_gym.errors import InputError

    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = "agents" if "graphopt_agents" in sys.modules else EXTRAS[error.name]
        print(
            f"error: this needs {error.name!r}, which is not installed: pip install 'graphopt-gym[{extra}]'",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted before there was a result", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
