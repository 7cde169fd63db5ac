"""The one error type for bad input, and "did you mean" for names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: one line naming the field, the value and the fix.

    The command line prints the message and exits with status 2.
    """


def unknown_name(what: str, name: object, known: Iterable[str], hint: str = "") -> InputError:
    """An :class:`InputError` for a name that is not in ``known``, with the nearest one that is.

    ``what`` is a noun; where it was found may stand before it: ``"v100.toml: hosts[0]: device"``.
    """
    names = sorted(known)
    where, colon, noun = what.rpartition(": ")
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    text = f"{where}{colon}unknown {noun} {str(name)!r}"
    if near:
        text += f"; did you mean {near[0]!r}?"
    elif names:
        text += f"; known: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
    return InputError(text + (f" {hint}" if hint else ""))
