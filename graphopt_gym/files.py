"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from graphopt_gym.errors import InputError


def write_file(path: str | os.PathLike[str], content: bytes, *, make_folders: bool = False) -> Path:
    """Write a file whole or not at all: under another name beside it, then renamed.

    Args:
        path: of the file.
        content: its bytes.
        make_folders: make missing folders; otherwise they are an error.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        if make_folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"cannot write {str(path)!r}: {why}; give a path that can be written") from None
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """:func:`write_file` for text, as UTF-8."""
    return write_file(path, text.encode("utf-8"))
