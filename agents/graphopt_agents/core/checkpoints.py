"""Checkpoints of the learned agents: a JSON header and tensors in one file, read without unpickling any code.

The file is a dictionary ``{"header": JSON text, "state": ...}`` written by ``torch.save`` and read with
``torch.load(weights_only=True)`` only, which refuses everything but plain containers, numbers, text and tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import platform
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphopt_gym.data import data_path
from graphopt_gym.errors import InputError, quoted
from graphopt_gym.files import MAX_BYTES, make_folder, parse_json, read_file, write_file

try:
    import fcntl
except ImportError:  # pragma: no cover - no POSIX system
    fcntl = None  # type: ignore[assignment]

FORMAT, VERSION = "graphopt-agent", 1
CHECKPOINT_NAME = "checkpoint.pt"
OTHER_NETWORK = "{!r} holds weights of another network than its arguments say; train again"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    ``agent``: e.g. ``"gdp"``. ``args``: the arguments of the run, JSON-able. ``state``: nested dictionaries and lists
    of tensors, numbers and text. ``libraries``: versions it was written with. ``facts``: anything else, JSON-able.
    """

    agent: str
    args: dict[str, Any]
    state: dict[str, Any]
    libraries: dict[str, str]
    facts: dict[str, Any]


def library_versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__}


def save_checkpoint(
    path: str | os.PathLike[str],
    agent: str,
    args: Mapping[str, Any],
    state: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint whole or not at all: to a temporary file beside it, then renamed.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "agent": agent,
        "args": dict(args),
        "libraries": library_versions(),
        "facts": dict(facts or {}),
    }
    content = {"header": json.dumps(header), "state": dict(state)}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_file(path, buffer.getvalue())


def shipped_checkpoints() -> list[str]:
    """Names of the trained policies that come with the project, which stand for their files."""
    return sorted(path.stem for path in data_path("checkpoints").glob("*.pt"))


def load_checkpoint(path: str | os.PathLike[str], agent: str | None = None) -> Checkpoint:
    """Read a checkpoint, or the one in a run's folder.

    Args:
        path: the file, the folder of a run, or the name of a shipped one (see :func:`shipped_checkpoints`).
        agent: which agent it must be of; None: any.

    Raises:
        InputError: no such file, not a checkpoint, damaged, of another version, or of another agent.
    """
    path = Path(path)
    if str(path) in shipped_checkpoints() and not os.path.exists(path):
        path = data_path("checkpoints", f"{path}.pt")
    if os.path.isdir(path):
        path = path / CHECKPOINT_NAME
    where = quoted(str(path))
    if not os.path.exists(path):
        raise InputError(
            f"no checkpoint at {where}; give the file or the folder that training wrote, or one that is shipped: "
            f"{', '.join(shipped_checkpoints())}"
        )
    held = read_file(path, "checkpoint")
    try:
        with zipfile.ZipFile(io.BytesIO(held)) as archive:  # torch does not compare the checksums that it writes
            inflated = sum(entry.file_size for entry in archive.infolist())
            if inflated > MAX_BYTES or archive.testzip() is not None:
                raise ValueError
        content = torch.load(io.BytesIO(held), map_location="cpu", weights_only=True)
    except Exception:  # torch raises whatever the broken bytes lead to
        raise InputError(f"{where} is damaged, or no checkpoint of this package; train again or give another") from None
    try:
        header = parse_json(content["header"], where)
        if header["format"] != FORMAT:
            raise ValueError
        version = header["version"]
    except (KeyError, TypeError, ValueError, IndexError):
        raise InputError(f"{where} holds no checkpoint of this package; give one that its training wrote") from None
    if version != VERSION:
        raise InputError(f"{where} is of checkpoint version {version}, this package reads {VERSION}; train it again")
    if agent is not None and header.get("agent") != agent:
        raise InputError(f"{where} is of agent {header.get('agent')!r}, not {agent!r}; give one of {agent!r}")
    try:
        return Checkpoint(
            header["agent"], dict(header["args"]), dict(content["state"]), dict(header["libraries"]), header["facts"]
        )
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{where} is damaged: its header or state is incomplete; train again") from None


def make_network(network_class: Any, config: Any, weights: Any, where: str) -> Any:
    """A network with its weights. Nothing large is made of sizes that are not those of the weights.

    Raises:
        InputError: the weights are not of the network that the configuration names.
    """
    check_sizes(dataclasses.astuple(config), weights, where)
    try:
        with torch.device("meta"):  # where it takes no memory
            sketch = network_class(config).state_dict()
        wrong = {name: one.shape for name, one in sketch.items()} != {name: one.shape for name, one in weights.items()}
    except (RuntimeError, TypeError, AttributeError, ZeroDivisionError):
        wrong = True
    if wrong:
        raise InputError(OTHER_NETWORK.format(where))
    network = network_class(config)
    load_weights(network, weights, where)
    return network


def check_sizes(sizes: Iterable[Any], weights: Any, where: str) -> None:
    """Raises InputError for weights that are none, or too few for one of the sizes of their network."""
    weights = weights if isinstance(weights, dict) else {}
    held = sum(value.numel() for value in weights.values() if isinstance(value, torch.Tensor))
    if not held or any(isinstance(size, int) and size > max(held, 10_000) for size in sizes):
        raise InputError(OTHER_NETWORK.format(where))


def load_weights(module: torch.nn.Module, weights: Mapping[str, Any], where: str) -> None:
    """Put weights into a module.

    Raises:
        InputError: they are not of this network (names, shapes, or values that are no numbers).
    """
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError, KeyError):
        raise InputError(OTHER_NETWORK.format(where)) from None
    if not all(torch.isfinite(value).all() for value in module.state_dict().values()):
        raise InputError(f"{where!r} holds weights that are not finite; train again")


def run_folder(path: str | os.PathLike[str], resume: bool) -> Path:
    """The folder of a run, made where it is missing.

    Raises:
        InputError: it cannot be made or written; it holds a run already and ``resume`` is not asked for; or nothing
            to resume.
    """
    folder = make_folder(path)
    exists = (folder / CHECKPOINT_NAME).exists()
    if exists and not resume:
        raise InputError(f"{str(folder)!r} already holds a run; give another folder, or resume it with --resume")
    if resume and not exists:
        raise InputError(f"{str(folder)!r} holds no {CHECKPOINT_NAME} to resume; leave out --resume to start one")
    return folder


@contextlib.contextmanager
def held_folder(path: str | os.PathLike[str], resume: bool) -> Iterator[Path]:
    """:func:`run_folder`, locked for one run alone until the context ends.

    The system lets go of the lock when the process ends, however it ends, so none is ever left behind.

    Raises:
        InputError: as :func:`run_folder`; or another run goes on in there.
    """
    folder = run_folder(path, resume)
    if fcntl is None:  # pragma: no cover - no POSIX system
        yield folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is training into {str(folder)!r}; give another folder, or wait for its end"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield run_folder(path, resume)  # again: another run may have ended in between
    finally:
        os.close(handle)


def same_arguments(mine: Mapping[str, Any], theirs: Mapping[str, Any], where: str, free: tuple[str, ...] = ()) -> None:
    """Refuse to go on with other arguments than a run began with, but for those in ``free``.

    Raises:
        InputError: naming the first argument that differs.
    """
    for name, value in mine.items():
        if name not in free and theirs.get(name) != value:
            raise InputError(
                f"{where!r} already holds another run, with {name}={theirs.get(name)!r}, not {value!r}; "
                "give the same arguments, or another folder"
            )
