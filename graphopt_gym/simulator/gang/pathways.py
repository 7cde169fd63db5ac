"""The experiments of Barham et al., Pathways (MLSys 2022, §5), as programs on the machines of the catalog.

The published figures are in ``envs_data/published/pathways_tables.csv``. What is fitted to them is two numbers, each on
one row; ``python scripts/fit_gang.py`` fits them again and prints every other row beside what is predicted for it.

- ``controller_core_us`` of the machines' control plane: 2.3 ms at parity on 128 TPUs.
- :data:`COMPUTE_SHARE`, the share of a core's peak FLOP/s that the decoder reaches: its pipeline of 4 stages on 128.

Chosen, as the paper does not say: sequences of 1,024 tokens, 32,000 words; forward run again in backward; gradients of
4 bytes a parameter, reduced once a step; an optimiser that reads and writes 28 bytes a parameter (Adam in float32) and
holds 12 beside the parameters; activations of 2 bytes; 2**20 tokens a step of the model with 64B parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from graphopt_gym.errors import InputError
from graphopt_gym.hardware.collectives import collective_s
from graphopt_gym.hardware.machine import Island, Machine, load_machine
from graphopt_gym.simulator.gang.orders import pipeline_lists
from graphopt_gym.simulator.gang.program import Builder
from graphopt_gym.simulator.gang.programs import Pipeline, chain, micro_batch_size, pipeline, stage_layers
from graphopt_gym.simulator.gang.simulator import GangSimulator, simulate_gangs

COMPUTE_SHARE = 0.5394  # fitted: decoder_3b, pipeline_S4_M16, 128 cores
ACTIVATION_BYTES, GRADIENT_BYTES, OPTIMISER_BYTES, STATE_BYTES = 2, 4, 28, 12
NODES = 128  # of a chained or fused call: read
SCALAR_S = 15e-6  # of an add and the start of its collective; chosen: with it fused calls match up to 1,000 cores
NEAR = 0.99  # the share of the other's throughput from which on two match: chosen


@dataclass(frozen=True)
class Decoder:
    """A decoder-only Transformer: the shape that its costs follow from."""

    layers: int = 62
    width: int = 2048
    feed_forward: int = 8192
    words: int = 32_000
    sequence: int = 1024

    @property
    def parameters(self) -> int:
        return self.layers * (4 * self.width**2 + 2 * self.width * self.feed_forward) + self.words * self.width

    @property
    def forward_flops(self) -> float:
        """Of a token: two for each parameter, and causal attention."""
        return 2.0 * self.parameters + 2.0 * self.layers * self.sequence * self.width

    def forward_s(self, tokens: float, machine: Machine, share: float) -> float:
        """Of so many tokens on one core that holds all layers."""
        return tokens * self.forward_flops / (machine.core.peak("bfloat16") * share)

    def apply_s(self, parameters: float, machine: Machine) -> float:
        """Of applying gradients to so many parameters on each core."""
        return parameters * OPTIMISER_BYTES / machine.core.memory_bytes_per_s


DECODER_3B = Decoder()


def on_cores(machine: str | Machine, cores: int) -> Machine:
    """A machine with as many hosts in each island as so many cores need."""
    found = load_machine(machine)
    return found.resized(max(1, cores // found.islands[0].cores // found.num_islands))


def decoder_pipeline(
    stages: int,
    micro_batches: int,
    cores: int,
    batch: int = 2048,
    model: Decoder = DECODER_3B,
    machine: str = "pathways_b",
    share: float = COMPUTE_SHARE,
    steps: int = 1,
) -> tuple[Pipeline, Machine]:
    """The decoder as a pipeline: every stage on ``cores / stages`` cores, each of which holds the stage whole.

    The stages take alike: the paper's first and last have a layer less, and the embedding and the softmax in its place.

    Raises:
        InputError: more stages than layers, micro-batches that do not divide the batch, stages that do not the cores.
    """
    found = on_cores(machine, cores)
    stage_layers(model.layers, stages)
    if cores % stages:
        raise InputError(f"stages is {stages}, which does not divide the {cores} cores; give a divisor")
    each = cores // stages
    examples = micro_batch_size(batch, micro_batches)
    tokens = examples * model.sequence
    forward_s = model.forward_s(tokens / each, found, share) / stages
    boundary = tokens * model.width * ACTIVATION_BYTES
    parameters = model.parameters / stages
    made = pipeline(
        stages, micro_batches, forward_s, 3 * forward_s, apply_s=model.apply_s(parameters, found), cores=each,
        steps=steps, boundary_bytes=boundary, stash_bytes=boundary // each,
        gradient_bytes=round(parameters * GRADIENT_BYTES),
        resident_bytes=round(parameters * (GRADIENT_BYTES + STATE_BYTES)), name=f"decoder S={stages} M={micro_batches}",
    )  # fmt: skip
    return made, found


def decoder_tokens_per_s(
    stages: int,
    micro_batches: int,
    cores: int,
    batch: int = 2048,
    model: Decoder = DECODER_3B,
    machine: str = "pathways_b",
    share: float = COMPUTE_SHARE,
    order: str = "gpipe",
) -> float:
    """Throughput of the pipeline in a steady state: of the second step, over the control plane of one controller."""
    made, found = decoder_pipeline(stages, micro_batches, cores, batch, model, machine, share, steps=2)
    simulator = GangSimulator(made.program, found)
    run = simulator.run("lists", lists=simulator.lists_of_slices(pipeline_lists(made, order)))
    if not run.valid:
        raise RuntimeError("; ".join(run.reasons))
    ends = [run.gang_finish_s[made.apply[step]].max() for step in range(2)]
    return float(batch * model.sequence / (ends[1] - ends[0]))


def decoder_spmd_tokens_per_s(
    cores: int = 128,
    batch: int = 2048,
    model: Decoder = DECODER_3B,
    ways: int = 8,
    share: float = COMPUTE_SHARE,
) -> float:
    """Throughput of the decoder as one computation on all cores: ``ways`` of them share each layer (chosen: the cores
    of a host), the others the batch. Four all-reduces of activations a layer, two again as forward runs again (Shoeybi
    et al., Megatron-LM, arXiv:1909.08053, §3)."""
    found = on_cores("pathways_b", cores)
    assert found.ici is not None
    tokens = batch * model.sequence / (cores // ways)
    compute_s = 4 * model.forward_s(tokens / ways, found, share)
    size = tokens * model.width * ACTIVATION_BYTES
    link = found.ici
    reduce_s = collective_s("all_reduce", found.collective, ways, size, link.bytes_per_s, link.latency_s)
    parameters = model.parameters / ways
    gradients_s = collective_s(
        "all_reduce", found.collective, cores // ways, parameters * GRADIENT_BYTES, link.bytes_per_s, link.latency_s
    )
    build = Builder("decoder spmd")
    everything = build.slice("all", cores, round(parameters * (GRADIENT_BYTES + STATE_BYTES)))
    step_s = compute_s + 6 * model.layers * reduce_s + gradients_s + model.apply_s(parameters, found)
    for _ in range(2):
        build.call()
        gang = build.gang("step", everything, step_s)
        if gang:
            build.edge(gang - 1, gang)
    run = simulate_gangs(build.program(), found)
    return float(batch * model.sequence / (run.gang_finish_s[1] - run.gang_finish_s[0]))


def two_islands_share(
    parameters: float = 64e9,
    traffic_bytes: float = 457e9,
    cores: int = 512,
    tokens: float = 2**20,
    share: float = COMPUTE_SHARE,
    machine: Machine | None = None,
) -> float:
    """Throughput of two islands that exchange their gradients, over that of one island with twice the cores.

    Each island computes its half of the batch, then sends its gradients to the other: half of the traffic each way.

    Args:
        parameters: of the model.
        traffic_bytes: both ways together.
        cores: of each island.
        tokens: of a step, both islands together.
        share: of the peak FLOP/s.
        machine: whose control plane and links are meant; ``pathways_b`` where left out.
    """
    found = load_machine("pathways_b") if machine is None else machine
    hosts = cores // found.islands[0].cores
    pair = replace(found, islands=(Island(hosts, found.islands[0].cores),) * 2)
    step_s = tokens * 8 * parameters / (2 * cores * found.core.peak("bfloat16") * share)
    build = Builder("two islands")
    slices = [build.slice(f"island {number}", cores) for number in range(2)]
    before = [build.gang("step", at, step_s, output_bytes=round(traffic_bytes / 2 / cores)) for at in slices]
    after = [build.gang("apply", at, 0.0) for at in slices]
    for number in range(2):
        build.edge(before[number], after[number])
        build.edge(before[number], after[1 - number], round(traffic_bytes / 2))
    run = simulate_gangs(build.program(), pair)
    if not run.valid:
        raise RuntimeError("; ".join(run.reasons))
    begin = float(run.gang_start_s[0])
    return step_s / (run.makespan_s - begin)


def dispatch_per_s(
    cores: int,
    time_s: float = SCALAR_S,
    form: str = "op_by_op",
    controllers: str = "single",
    machine: str | Machine = "pathways_a",
) -> float:
    """Computations a second of a scalar all-reduce and an add, each reading the one before, in a steady state.

    Args:
        cores: that all of them run on.
        time_s: of each computation without the all-reduce.
        form: as of :func:`chain`.
        controllers: ``single`` or ``multi``.
        machine: as many hosts of it as the cores need.
    """
    found = on_cores(machine, cores)
    calls = 64 if form == "op_by_op" else 4
    length = calls if form == "op_by_op" else calls * NODES
    program = chain(length, cores, time_s, form=form, nodes=NODES, collective="all_reduce", collective_bytes=4)
    run = simulate_gangs(program, found, controllers=controllers)
    per_call = program.num_gangs // calls
    last = run.gang_finish_s[per_call - 1 :: per_call]  # of each call; the first ones fill the queues
    half = calls // 2
    return (calls - half) * length / calls / float(last[-1] - last[half - 1])


def parity_s(cores: int, machine: str | Machine = "pathways_a", near: float = NEAR) -> float:
    """The smallest computation, its collective included, at which a single controller matches many, call by call."""
    found = on_cores(machine, cores)
    assert found.ici is not None
    inside_s = collective_s("all_reduce", found.collective, cores, 4, found.ici.bytes_per_s, found.ici.latency_s)
    low, high = 0.0, 1.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        one, many = (dispatch_per_s(cores, middle, "op_by_op", who, found) for who in ("single", "multi"))
        low, high = (low, middle) if one >= near * many else (middle, high)
    return high + inside_s


def staged_per_s(stages: int, dispatch: str = "parallel", time_s: float = SCALAR_S) -> float:
    """Computations a second of a pipeline of stages on 4 cores of a host each, whose data go from stage to stage: of
    one call, from when it is sent to when its result is there."""
    program = chain(
        stages, 4, time_s, nodes=stages, stages=stages, collective="all_reduce", collective_bytes=4, output_bytes=4
    )
    first = [4 * number for number in range(stages)]
    run = simulate_gangs(program, on_cores("pathways_a", 4 * stages), first_core=first, dispatch=dispatch)
    return stages / run.makespan_s


def bubble_only_tokens_per_s(stages: int, micro_batches: int, of: float, fitted: tuple[int, int]) -> float:
    """What a pipeline would reach if nothing but the bubble told it from the ``fitted`` (S, M) that reaches ``of``."""

    def busy(s: int, m: int) -> float:
        return m / (m + s - 1)

    return of * busy(stages, micro_batches) / busy(*fitted)


__all__ = [
    "COMPUTE_SHARE",
    "DECODER_3B",
    "Decoder",
    "bubble_only_tokens_per_s",
    "decoder_pipeline",
    "decoder_spmd_tokens_per_s",
    "decoder_tokens_per_s",
    "dispatch_per_s",
    "on_cores",
    "parity_s",
    "staged_per_s",
    "two_islands_share",
]
