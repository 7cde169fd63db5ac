"""Classical placement methods: each proposes one or a few placements, with its source.

:data:`METHODS` is the table that ``solve`` uses.
The schedulers are in ``list_scheduling`` and ``baechi``, the partitioners in ``partition``. ``projection`` makes
placements of groups from plans for single ops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from graphopt_gym.envs.placement import baechi, balancing, contiguous, optimal, partition, projection
from graphopt_gym.envs.placement import list_scheduling as schedulers
from graphopt_gym.envs.placement.problem import PlacementProblem
from graphopt_gym.search.evaluator import Evaluator, Method

# What m-TOPO, m-ETF and m-SCT believe of each device's capacity, one after the other until a placement is valid:
# their accounts follow the graph's own order, from which the simulated step departs.
BELIEVED_CAPACITIES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
# How freely they may spend memory, one after the other until a placement is valid: first as Baechi's do.
TOPO_SLACKS = (1.0, 0.5, 0.25, 0.0)
ETF_SLACKS = (np.inf, 0.5, 0.1, 0.0)

# Devices are of unequal speed where one takes this much longer for the graph than the next; so many kinds at most.
SLOWER, MOST_KINDS = 1.05, 4

PIPELINE = {"objective": "throughput"}
TARNAWSKI = "Tarnawski et al., Efficient Algorithms for Device Placement of DNN Graph Operators, NeurIPS 2020"
BAECHI = "Jeon et al., Baechi, SoCC 2020, and placer/{}.py of its released code"


def single_decisions(problem: PlacementProblem) -> np.ndarray:
    """int32 [kinds, G]: everything on the first device of each kind, as far as it may be there."""
    use = problem.usable
    first = use[np.unique(problem.simulator.device_type[use], return_index=True)[1]]
    decisions = np.repeat(np.sort(first).astype(np.int32)[:, None], problem.num_groups, axis=1)
    if problem.allowed is None:
        return decisions
    return np.unique(np.stack([problem.keep_to_allowed(one) for one in decisions]), axis=0)


def round_robin_decision(problem: PlacementProblem) -> np.ndarray:
    """int32 [G]: groups dealt out in turn, each to the devices that it may be on."""
    if problem.allowed is not None:
        turn = np.arange(problem.num_groups) % problem.allowed.sum(axis=1)
        return np.argmax(np.cumsum(problem.allowed, axis=1) > turn[:, None], axis=1).astype(np.int32)
    return np.arange(problem.num_groups, dtype=np.int32) % problem.num_devices


def _placement_problem(evaluator: Evaluator) -> PlacementProblem:
    assert isinstance(evaluator.problem, PlacementProblem)
    return evaluator.problem


def _propose(evaluator: Evaluator, devices: np.ndarray, levels: np.ndarray | None = None) -> bool:
    """Evaluate groups on devices, int [G] or [B, G]; whether one is valid. With levels, int [G], where decisions state
    such: of one level first, then of these."""
    problem, rows = _placement_problem(evaluator), np.atleast_2d(devices)
    decisions = problem.decision_of(rows)
    if levels is not None and problem.with_levels:
        decisions = np.concatenate([decisions, np.stack([rows, np.broadcast_to(levels, rows.shape)], axis=-2)])
    _, valid = evaluator.costs_and_valid(decisions)
    return bool(valid.any())


def _single(evaluator: Evaluator, rng: np.random.Generator) -> None:
    _propose(evaluator, single_decisions(_placement_problem(evaluator)))


def _round_robin(evaluator: Evaluator, rng: np.random.Generator) -> None:
    _propose(evaluator, round_robin_decision(_placement_problem(evaluator)))


def on_fastest(problem: PlacementProblem) -> Iterator[PlacementProblem]:
    """The problem, and, where devices are of unequal speed, the problem on its fastest devices alone.

    A plan that uses a slow device because it is there may take longer than one that leaves it out. So what the papers'
    methods, made for equal devices, propose for all devices they propose for the fastest kind, the two fastest, … too.
    """
    yield problem
    alone = problem.alone_s
    speeds = np.unique(alone[problem.usable])
    slower = np.flatnonzero(speeds[1:] > SLOWER * speeds[:-1])
    for slowest in speeds[slower[:MOST_KINDS]]:
        if (found := problem.on_devices(alone <= slowest)) is not None:
            yield found


def unlike(problem: PlacementProblem) -> bool:
    """Whether ops take longer on some of the devices in use than on others."""
    return len(np.unique(problem.simulator.device_type[problem.usable])) > 1


Proposals = Callable[[PlacementProblem], Iterable[np.ndarray]]


def _propose_best(evaluator: Evaluator, published: Proposals, *for_unlike: Proposals) -> None:
    """Evaluate, of each choice of devices, proposals until one is valid.

    Args:
        published: the paper's, int [G] or [B, G] each.
        for_unlike: ours beside it, where devices are unlike. There one device of each kind by itself is tried too.
    """
    given = _placement_problem(evaluator)
    for problem in on_fastest(given):
        for propose in (published, *for_unlike) if unlike(problem) else (published,):
            for devices in propose(problem):
                if _propose(evaluator, devices):
                    break
    if unlike(given):
        _propose(evaluator, single_decisions(given))


def _expert(evaluator: Evaluator, rng: np.random.Generator) -> None:
    _propose_best(evaluator, partition.expert)


def _metis(evaluator: Evaluator, rng: np.random.Generator) -> None:
    seed = int(rng.integers(2**31))
    _propose_best(evaluator, lambda problem: partition.metis(problem, seed))


def _by_insertion(
    schedule: Callable[[schedulers.Instance, np.ndarray | None], schedulers.Plan],
) -> Callable[[Evaluator, np.random.Generator], None]:
    """Plans of groups, and plans of single ops projected to groups: blind to memory, and, until valid, within it."""

    def run(evaluator: Evaluator, rng: np.random.Generator) -> None:
        for problem in on_fastest(given := _placement_problem(evaluator)):
            groups = schedulers.make_instance(problem)
            by_op = problem.num_groups < problem.simulator.tasks.num_tasks
            ops = projection.op_instance(problem) if by_op else groups
            levels = projection.rank_levels(problem, groups) if problem.with_levels else None
            for share in (None, *BELIEVED_CAPACITIES):
                capacity = None if share is None else (problem.capacity_bytes * share).astype(np.int64)
                plan = schedule(groups, capacity)
                devices = plan.device_of_unit[groups.unit_of_group][None]
                if by_op:
                    devices = np.concatenate([devices, projection.project(groups, ops, schedule(ops, capacity))])
                if _propose(evaluator, devices, levels) or not plan.fits:
                    break
        if unlike(given):
            _propose(evaluator, single_decisions(given))

    return run


Schedule = Callable[[schedulers.Instance, np.ndarray, float], schedulers.Plan]


def _within_memory(schedule: Schedule, slacks: Iterable[float]) -> Proposals:
    def proposals(problem: PlacementProblem) -> Iterator[np.ndarray]:
        instance = schedulers.make_instance(problem)
        for slack in slacks:
            for share in BELIEVED_CAPACITIES:
                plan = schedule(instance, (problem.capacity_bytes * share).astype(np.int64), slack)
                yield plan.device_of_unit[instance.unit_of_group]
                if not plan.fits:  # what does not fit will not fit into less
                    break

    return proposals


def _memory_aware(*kinds: Proposals) -> Callable[[Evaluator, np.random.Generator], None]:
    return lambda evaluator, rng: _propose_best(evaluator, *kinds)


def _topo_fastest_first(instance: schedulers.Instance, capacity_bytes: np.ndarray, slack: float) -> schedulers.Plan:
    order = np.argsort(instance.durations_s.sum(axis=1), kind="stable")
    return baechi.m_topo(instance, capacity_bytes, slack, order)


def _by_finish(schedule: Callable[..., schedulers.Plan]) -> Schedule:
    return lambda instance, capacity_bytes, slack: schedule(instance, capacity_bytes, slack, by_finish=True)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("single", _single, "everything on one device, the best kind of device", "the usual baseline"),
        Method("round_robin", _round_robin, "groups dealt out to the devices in turn", "the usual baseline"),
        Method(
            "expert",
            _expert,
            "layers in order, spread evenly; encoder and decoder on a half of the devices each",
            "the human experts of Mirhoseini et al., ICML 2017, and Zhou et al., GDP, 2019",
        ),
        Method(
            "metis",
            _metis,
            "k-way partition of the groups: balanced work, least bytes cut",
            "Karypis and Kumar, SIAM J. Sci. Comput. 20(1), 1998, by pymetis",
            random=True,
        ),
        Method(
            "heft",
            _by_insertion(schedulers.heft),
            "heterogeneous earliest finish time, of groups and of single ops",
            "Topcuoglu et al., IEEE TPDS 13(3), 2002, §4.1",
        ),
        Method(
            "cpop",
            _by_insertion(schedulers.cpop),
            "the critical path on one device, of groups and of single ops",
            "Topcuoglu et al., IEEE TPDS 13(3), 2002, §4.2",
        ),
        Method(
            "m_topo",
            _memory_aware(
                _within_memory(baechi.m_topo, TOPO_SLACKS),
                _within_memory(_topo_fastest_first, TOPO_SLACKS),
                _within_memory(_topo_fastest_first, (np.inf,)),
            ),
            "devices filled in topological order, within memory",
            BAECHI.format("m_topo"),
        ),
        Method(
            "m_etf",
            _memory_aware(
                _within_memory(baechi.m_etf, ETF_SLACKS), _within_memory(_by_finish(baechi.m_etf), ETF_SLACKS)
            ),
            "earliest task first, within memory",
            BAECHI.format("m_etf"),
        ),
        Method(
            "m_sct",
            _memory_aware(
                _within_memory(baechi.m_sct, ETF_SLACKS), _within_memory(_by_finish(baechi.m_sct), ETF_SLACKS)
            ),
            "small communication times: earliest task first with favourite children, within memory",
            BAECHI.format("m_sct") + ", after Hanen and Munier, 1995",
        ),
        Method(
            "dp",
            contiguous.dp,
            "the best contiguous pipeline, by dynamic programming over ideals",
            TARNAWSKI + ", §5.1.1",
            options={"ideals": contiguous.IDEALS},
            rules=PIPELINE,
        ),
        Method(
            "load_annealing",
            balancing.load_annealing,
            "annealing of the loads of a pipeline in a compiled loop, from dp's",
            "Kirkpatrick et al., Science 220, 1983, over a p-norm of the loads",
            random=True,
            options={"ideals": contiguous.IDEALS},
            rules=PIPELINE,
        ),
        Method(
            "cp_sat",
            optimal.cp_sat,
            "the best pipeline, contiguous or not, by an integer program",
            TARNAWSKI + ", §5.1.2, by OR-tools' CP-SAT",
            random=True,
            options={"ideals": contiguous.IDEALS, "time_limit_s": optimal.SECONDS, "workers": 0},
            rules=PIPELINE,
            needs=("ortools",),
        ),
    )
}
