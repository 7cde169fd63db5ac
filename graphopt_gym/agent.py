"""Agent: what a learned agent is to the command line. Packages declare theirs by the entry-point group
``graphopt_gym.agents``; ours are in ``graphopt_agents``, which this package never imports by itself."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from graphopt_gym.errors import InputError, unknown_name
from graphopt_gym.task import Reference, resolve

ENTRY_POINTS = "graphopt_gym.agents"


@dataclass(frozen=True)
class Agent:
    """A learned agent.

    Its trainer has ``args_from(mapping)``, which refuses unknown names; ``train(args, out, resume=…, progress=…)``,
    which calls progress with rows of ``update`` (or of what its length is counted in), ``graph``, ``cluster``,
    ``mean_cost`` and ``best_cost``, and gives ``done`` and ``solutions()``; and ``evaluate(checkpoint, graph=…,
    cluster=…)``, which gives a solution.

    Attributes:
        name: one word, which its checkpoints bear.
        summary, source: one line each.
        trainer: the class, or ``"package.module:Class"``.
        envs: the environments that it is for; none: any, which is its argument ``env``.
        length: the argument that says how long a run is.
        transfers: it trains on several ``graphs`` and ``clusters`` and goes on to others: ``train`` takes
            ``start_from``, ``evaluate`` takes ``samples``, ``updates``, ``seed`` and ``progress``, and
            ``start_arguments(checkpoint)`` gives the sizes that a run from there takes over. Otherwise its arguments
            are one ``graph`` and one ``cluster``.
        cluster: where a graph is that is named without a cluster, for people.
    """

    name: str
    summary: str
    source: str
    trainer: Reference
    envs: tuple[str, ...] = ()
    length: str = "updates"
    transfers: bool = True
    cluster: str = ""

    @property
    def places(self) -> tuple[str, str]:
        """The arguments that say which graphs and clusters."""
        return ("graphs", "clusters") if self.transfers else ("graph", "cluster")

    def load(self) -> Any:
        """Its trainer, and with it PyTorch."""
        return resolve(self.trainer)


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda one: one.name)}


def agent_names() -> list[str]:
    """The names of the agents of all installed packages; nothing of theirs is imported."""
    return list(_entries())


def agents() -> dict[str, Agent]:
    """All agents by name. One that cannot be had is left out."""
    found = {}
    for name, entry in _entries().items():
        try:
            found[name] = entry.load()
        except Exception as error:  # another package's fault must not take ours away
            import warnings

            warnings.warn(f"agent {name!r} of {entry.value!r} is left out: {error}", stacklevel=2)
    return found


def find_agent(name: str) -> Agent:
    """The agent of that name. Raises InputError for an unknown one, with the nearest, and where none is installed."""
    known = agents()
    if not known:
        raise InputError("no agents are installed: pip install 'graphopt-gym[agents]'")
    if name not in known:
        raise unknown_name("agent", name, known)
    return known[name]
