"""Modules that only some functions need, the extra of this package that brings each, and those that a user names."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from graphopt_gym.errors import InputError, one_line, unknown_name

EXTRAS = {
    "torch": "torch",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxslim": "slim",
    "z3": "solver",
    "highspy": "rewrite",
    "ortools": "rewrite",
    "egglog": "rewrite",
    "sklearn": "architecture",
    "mlxtend": "architecture",
    "analognasbench": "architecture",
    "ray": "ray",
    "simpy": "test",
    "torch_geometric": "agents",
    "stable_baselines3": "agents",
    "sb3_contrib": "agents",
    "graphopt_agents": "agents",
}


def installed(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    return find_spec(module) is not None


class NotInstalled(InputError, ImportError):
    """A module that is not installed, with the fix; ``what`` needs it. Also an ImportError."""

    def __init__(self, module: str, what: str = "this", extra: str = "") -> None:
        extra = extra or EXTRAS.get(module, "")
        hint = f': pip install "graphopt-gym[{extra}]"' if extra else ""
        super().__init__(f"{what} needs {module!r}, which is not installed{hint}")


def need(*modules: str, what: str = "this") -> None:
    """Raises NotInstalled for the first of the modules that is not there; ``what`` needs them."""
    for module in modules:
        if not installed(module):
            raise NotInstalled(module, what)


def import_named(spec: str, kind: str = "function") -> Any:
    """What ``"package.module:name"`` names, of code that need not be installed: the current folder is looked in, too.

    Raises:
        InputError: a malformed spec, no such module or name, or a module that raises; one line, with ``kind``.
    """
    module, _, name = spec.partition(":")
    if not module or not name:
        raise InputError(f"{spec!r} is not of the form package.module:{kind}")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        source = import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise InputError(
                f"no Python module {module!r} (looked for {error.name!r}); run from its folder, install it, or set "
                "PYTHONPATH"
            ) from error
        raise InputError(f"importing {module!r} fails: {one_line(error)}") from error
    except Exception as error:  # whatever the file raises
        raise InputError(f"importing {module!r} fails: {type(error).__name__}: {one_line(error)}") from error
    if not hasattr(source, name):
        known = [one for one, value in vars(source).items() if callable(value) and not one.startswith("_")]
        raise unknown_name(f"{kind} in {module}", name, known)
    return getattr(source, name)
