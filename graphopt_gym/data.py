"""Where the shipped data lies: inside an installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_path(*parts: str) -> Path:
    """The path of a shipped data file or folder, e.g. ``data_path("graphs", "bert_base.npz")``."""
    installed = _PACKAGE / "envs_data"
    root = installed if installed.is_dir() else _PACKAGE.parent / "envs_data"
    return root.joinpath(*parts)
