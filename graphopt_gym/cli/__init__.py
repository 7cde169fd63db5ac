"""The ``graphopt`` command.

Exit status: 0 done; 1 it ran and the answer is no (an invalid outcome, a failed check); 2 bad input, said in one line
on standard error. With ``--json``, standard output holds one JSON object and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import sys


def main() -> None:
    """The entry point: runs a command, turns bad input into one line and exit status 2."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that cannot be encoded here
    code = _run()
    try:
        sys.stdout.flush()
    except OSError as error:
        code = _unwritten(error)
    sys.exit(code)


def _run() -> int:
    """The exit status of a command."""
    import typer

    from graphopt_gym.cli.app import app
    from graphopt_gym.errors import InputError
    from graphopt_gym.extras import EXTRAS, NotInstalled

    command = typer.main.get_command(app)
    try:
        with command.make_context("graphopt", sys.argv[1:]) as context:
            command.invoke(context)
        return 0
    except typer.Exit as stop:
        return stop.exit_code
    except InputError as error:
        return _refused(error)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _refused(NotInstalled(error.name, extra="agents" if "graphopt_agents" in sys.modules else ""))
    except KeyboardInterrupt:
        print("interrupted before there was a result", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None:
            raise
        return _unwritten(error)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's, which some releases of typer bring under another name
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return 2
        where = getattr(getattr(error, "ctx", None), "command_path", "graphopt")
        return _refused(f"{error.format_message()} (see: {where} --help)")


def _refused(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _unwritten(error: OSError) -> int:
    """The status where standard output took no more. Nothing is tried again when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):  # its reader has seen enough, as `head` has
        return 141
    return _refused(f"cannot write standard output: {error.strerror or error}")
