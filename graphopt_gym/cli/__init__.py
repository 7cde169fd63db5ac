"""The ``graphopt`` command.

Exit status: 0 done; 1 it ran and the answer is no (an invalid outcome, a failed check), or could not be written; 2 bad
input, said in one line on standard error; 130 and 143, interrupted (Ctrl-C) and terminated (SIGTERM) before there was
anything to keep; 141, nobody reads on. With ``--json``, standard output holds one JSON object and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM came: whoever keeps something at Ctrl-C keeps it now too."""


class Closed(io.StringIO):
    """Stands for a stream that was closed before we began, and keeps what should have been written."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated


def main() -> None:
    """The entry point: runs a command, turns bad input into one line and exit status 2."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed before we began: the next file would get its number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Closed())
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that cannot be encoded here
    before = signal.getsignal(signal.SIGTERM)
    try:
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _terminate)
        code = _run()
    except KeyboardInterrupt as stop:
        print("interrupted before there was a result", file=sys.stderr)
        code = 143 if isinstance(stop, Terminated) else 130
    finally:
        if before is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, before)
    try:
        sys.stdout.flush()
        if isinstance(sys.stdout, Closed) and sys.stdout.getvalue():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
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
    _refused(f"cannot write standard output: {error.strerror or error}")
    return 1
