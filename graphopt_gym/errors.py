"""The one error type for bad input, and "did you mean" for names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: one line naming the field, the value and the fix.

    The command line prints the message and exits with status 2. Whatever text of others goes into the message, it
    stays on one line that can be printed, and of a length that can be read.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(printable(str(message)), 1500))


def printable(text: str) -> str:
    """The text on one line: lines joined by spaces, other characters that do not print escaped (``\\x1b``)."""
    text = " ".join(line.strip() for line in text.splitlines())
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(text: str, limit: int) -> str:
    """The text, cut in the middle where it is long."""
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 3 :]}"


def quoted(value: object, limit: int = 240) -> str:
    """``repr(value)`` for an error message, shortened."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    try:
        return shortened(repr(value), limit)
    except ValueError:  # Python writes no number of thousands of digits
        return f"a {type(value).__name__}"


def one_line(error: BaseException, limit: int = 200) -> str:
    """What another library's exception says, on one line and cut where it is long."""
    return shortened(" ".join(str(error).split()) or type(error).__name__, limit)


class UnknownArgument(InputError, TypeError):
    """An argument that a function does not take: also a TypeError, as which other libraries look for it."""


def unknown_name(what: str, name: object, known: Iterable[str], hint: str = "") -> InputError:
    """An :class:`InputError` for a name that is not in ``known``, with the nearest one that is.

    ``what`` is a noun; where it was found may stand before it: ``"v100.toml: hosts[0]: device"``.
    """
    names = sorted(known)
    where, colon, noun = what.rpartition(": ")
    given = name if isinstance(name, str) else quoted(name)
    near = difflib.get_close_matches(given[:200], names, n=1, cutoff=0.4)
    text = f"{where}{colon}unknown {noun} {quoted(given)}"
    if near:
        text += f"; did you mean {near[0]!r}?"
    elif names:
        text += f"; known: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
    return InputError(text + (f" {hint}" if hint else ""))


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> UnknownArgument:
    """An :class:`UnknownArgument` with the nearest known one, and with Python's own words: libraries that try an
    argument and do without it look for these."""
    nearest = unknown_name(f"argument of {owner}", name, known)
    return UnknownArgument(f"{nearest} ({owner} got an unexpected keyword argument {name!r})")
