"""Figures as files, and names as figures can draw them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from graphopt_gym.errors import printable, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawable(text: str, limit: int = 120) -> str:
    """A name as a figure can draw it: one line, shortened, of characters that the font has, its dollars no formula."""
    text = "".join(sign if ord(sign) in _signs() else "\ufffd" for sign in shortened(printable(text), limit))
    text = text.replace("$", r"\$") if text.strip() else "?"
    return f" {text}" if text.startswith("_") else text  # legends leave out what starts with an underscore


@cache
def _signs() -> frozenset[int]:
    """The characters that the font of figures has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def figure_bytes(figure: Figure, kind: str, dpi: int = 110) -> bytes:
    """A figure as a file's content; the same figure gives the same bytes."""
    import io

    import matplotlib

    buffer = io.BytesIO()
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "graphopt", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=dated.get(kind))
    return buffer.getvalue()
