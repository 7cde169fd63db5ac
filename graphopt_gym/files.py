"""Files: read with a limit, written whole or not at all, and checked before the work for them begins."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import re
import secrets
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from graphopt_gym.errors import InputError, one_line, quoted

MAX_BYTES = 2**31  # what is read of one file at most; no format of ours, nor protobuf's, needs more


def read_file(path: str | os.PathLike[str], what: str = "file", limit: int = MAX_BYTES) -> bytes:
    """The bytes of a file, a pipe or a device.

    Args:
        path: of the file.
        what: the noun that an error message begins with, e.g. ``"graph file"``.
        limit: bytes.

    Raises:
        InputError: it cannot be read, or holds more than ``limit`` bytes.
    """
    where = f"{what} {quoted(os.fspath(path))}"
    try:
        pieces, size = [], 0
        with open(path, "rb") as file:
            while size <= limit and (piece := file.read(2**20)):
                pieces.append(piece)
                size += len(piece)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(f"{where} cannot be read: {_why(error)}") from None
    if size > limit:
        raise InputError(f"{where} holds more than {limit:,} bytes, the most that is read")
    return b"".join(pieces)


def read_text(path: str | os.PathLike[str], what: str = "file", limit: int = MAX_BYTES) -> str:
    """:func:`read_file` for text in UTF-8."""
    try:
        return read_file(path, what, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} {quoted(os.fspath(path))} is not a text file in UTF-8: {error.reason}") from None


def parse_json(content: str | bytes, where: str) -> Any:
    """A JSON value, in which every integer is one that a float can hold.

    Args:
        content: the text.
        where: what an error message begins with.

    Raises:
        InputError: it is not JSON, nests too deeply, or holds an integer of more than 300 digits.
    """

    def integer(digits: str) -> int:
        if len(digits) > 300:
            raise ValueError(f"an integer of {len(digits)} digits")
        return int(digits)

    try:
        return json.loads(content, parse_int=integer)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is damaged or not JSON: {one_line(error)}") from None


def write_file(path: str | os.PathLike[str], content: bytes, *, make_folders: bool = False) -> Path:
    """Write a file whole or not at all: under another name beside it, then renamed.

    What stands at the path already is respected: a link stays and its target is replaced, a file keeps its mode (a new
    one has the umask's), a pipe or a device is written into, and so is what standard output or error lead to.

    Args:
        path: of the file.
        content: its bytes.
        make_folders: make missing folders; otherwise they are an error.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        old = _status(path)
        if old is not None and (not stat.S_ISREG(old.st_mode) or _open_as(old)):
            _write_into(path, old, content)
            return path
        if old is not None and not os.access(path, os.W_OK):
            raise PermissionError("it is write-protected")
        target = Path(os.path.realpath(path))
        if make_folders:
            target.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(target.parent) as temporary:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if old is not None:
                with contextlib.suppress(OSError):  # only root may give a file away
                    os.chown(temporary, old.st_uid, old.st_gid)
                os.chmod(temporary, stat.S_IMODE(old.st_mode))
            os.replace(temporary, target)
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """:func:`write_file` for text, as UTF-8."""
    return write_file(path, text.encode("utf-8", "backslashreplace"))


def file_stem(name: str, limit: int = 100) -> str:
    """A name as part of a file's: other signs than ASCII letters, digits and ``._-`` become ``_``, and long ones are
    cut; what is changed ends in a digest, so that different names stay different."""
    stem = re.sub(r"[^\w.-]|^[.-]", "_", name, flags=re.ASCII)[:limit] or "_"
    if stem == name and name:
        return name
    return f"{stem}-{hashlib.blake2b(name.encode(errors='backslashreplace'), digest_size=4).hexdigest()}"


def check_output(path: str | os.PathLike[str] | None, inputs: Iterable[Any] = ()) -> None:
    """Refuse an output file that cannot be written, before any work is done for it.

    Args:
        path: of the output; None: there is none.
        inputs: what the work reads; those that are paths of files must not be the output, under whatever name.

    Raises:
        InputError: one line saying why, and what to give.
    """
    if path is None:
        return
    path = Path(path)
    try:
        old = _status(path)
        if old is None or stat.S_ISREG(old.st_mode):
            with _temporary(Path(os.path.realpath(path)).parent):
                pass
        if old is None:
            return
        if not os.access(path, os.W_OK):
            raise PermissionError("it is write-protected")
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    if stat.S_ISDIR(old.st_mode):
        raise InputError(f"cannot write {quoted(os.fspath(path))}: it is a folder; give a file name")
    for given in inputs:
        path_given = isinstance(given, str | os.PathLike) and stat.S_ISREG(old.st_mode) and os.path.isfile(given)
        if path_given and os.path.samestat(old, os.stat(given)):
            raise InputError(
                f"cannot write {quoted(os.fspath(path))}: it is the input {quoted(os.fspath(given))}, which would be "
                "lost; give another path"
            )


def make_folder(path: str | os.PathLike[str]) -> Path:
    """A folder for outputs, made where it is missing.

    Raises:
        InputError: it cannot be made or written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _temporary(path):
            pass
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from None
    return path


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drops what libraries in C print on standard output meanwhile, so that it holds our answers alone.

    One at a time; what other threads print in that time is dropped too, so keep it short.
    """
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda everything: None
    with _SILENCE, contextlib.ExitStack() as after:
        if sys.stdout is not None:
            sys.stdout.flush()
        flush(None)  # C's own buffer, which holds the text back where standard output is no terminal
        with contextlib.suppress(OSError):  # it is closed
            kept = os.dup(1)
            after.callback(os.close, kept)
            after.callback(os.dup2, kept, 1)
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        after.callback(flush, None)
        yield


_SILENCE = threading.RLock()


def _status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Of what a path leads to, None where there is nothing yet."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _open_as(status: os.stat_result) -> int:
    """1 or 2 where a path leads to where standard output or error do (``/dev/stdout``), else 0."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(status, os.fstat(descriptor)):
                return descriptor
    return 0


def _write_into(path: Path, status: os.stat_result, content: bytes) -> None:
    """A pipe, a device, or what is open already: replacing it would take it from those who use it."""
    descriptor = _open_as(status)
    if stream := (None, sys.stdout, sys.stderr)[descriptor]:  # what was printed comes first
        stream.flush()
    with open(descriptor or path, "wb", closefd=not descriptor) as file:
        file.write(content)


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A new empty file in a folder, with the mode that new files have; gone afterwards, unless it was renamed."""
    temporary = folder / f".graphopt.{secrets.token_hex(8)}"
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _unwritable(path: str | os.PathLike[str], error: Exception) -> InputError:
    return InputError(f"cannot write {quoted(os.fspath(path))}: {_why(error)}; give a path that can be written")
