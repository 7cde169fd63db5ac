"""Steps that run on several workers compute what eager torch computes, wherever each op runs."""

from __future__ import annotations

import copy
import os
import signal

import numpy as np
import pytest

from graphopt_gym.errors import InputError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from graphopt_gym.execution.plan import make_plan  # noqa: E402
from graphopt_gym.execution.program import build_program, check_placement  # noqa: E402
from graphopt_gym.execution.session import Workers, which_devices  # noqa: E402
from graphopt_gym.graphs.zoo.registry import ENTRIES  # noqa: E402
from graphopt_gym.simulator.simulator import simulate  # noqa: E402
from tests.execution.models import loss_of, pieces, step, tangled  # noqa: E402

OPTIMIZERS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
}


@pytest.fixture(scope="module")
def workers():
    with Workers(3, devices="cpu") as running:
        yield running


def placements(program, count, devices, seed=0):
    """One device; halves in order; the rest at random, op by op."""
    rng = np.random.default_rng(seed)
    ops = program.graph.num_ops
    yield np.zeros(ops, int)
    yield np.arange(ops) * devices // ops
    for _ in range(count - 2):
        yield rng.integers(0, devices, ops)


def training(optimizer="adam"):
    return build_program({**step(), "optimizer": optimizer}, "tangled")


def small_bert():
    """Loss and gradients, nothing of which is written in place."""
    sizes = {"layers": 1, "width": 16, "heads": 2, "inner": 32, "sequence": 8, "batch": 2, "vocabulary": 50}
    arguments = ENTRIES["bert_base"].arguments(**sizes, device="cpu")
    program = build_program({**arguments, "optimizer": None, "target": "cpu"}, "bert")
    assert not program.writers
    return program


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training__three_steps_are_those_of_eager_torch(workers, optimizer):
    net, tokens = tangled()
    eager, update = copy.deepcopy(net), None
    update = OPTIMIZERS[optimizer](eager.parameters())
    wanted = {}
    for number in range(3):
        update.zero_grad()
        value = loss_of(eager(tokens))
        value.backward()
        if number == 0:
            wanted = {f"gradient of {name}": p.grad.clone() for name, p in eager.named_parameters()}
            wanted["output 0"] = value.detach()
        update.step()
    program = training(optimizer)
    assert len(program.writers) > 10
    after = dict(eager.named_parameters()) | {name: b for name, b in eager.named_buffers() if "running" in name}
    for placement in placements(program, 6 if optimizer == "adam" else 3, 3):
        workers.load(program, placement)
        workers.step(seed=0)
        found = workers.results()
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")
        for _ in range(2):
            workers.step()
        kept = workers.parameters(program)
        for name, value in after.items():
            torch.testing.assert_close(kept[name], value.detach(), msg=lambda text, name=name: f"{name}: {text}")


def test_inference__outputs_are_those_of_eager_torch_on_any_placement(workers):
    net, inputs = pieces()
    with torch.no_grad():
        wanted = pytree.tree_leaves(net(*(one.clone() for one in inputs)))
    program = build_program({"module": net, "example_inputs": inputs, "train": False, "target": "cpu"}, "pieces")
    for number, placement in enumerate(placements(program, 8, 3)):
        workers.load(program, placement, ("fifo", "program", "stream")[number % 3])
        for _ in range(2):  # the input that is written is as it was before
            workers.step(seed=0)
            found = workers.results()
            assert len(found) == len(wanted)
            for index, value in enumerate(wanted):
                torch.testing.assert_close(found[f"output {index}"], value)


def test_random_ops__give_the_same_wherever_they_run(workers):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 6), nn.Dropout(0.5))
    program = build_program({"module": net, "example_inputs": (torch.randn(9, 6),), "target": "cpu"}, "dropout")
    found = []
    for placement in placements(program, 3, 3):
        workers.load(program, placement)
        workers.step(seed=1)
        found.append(workers.results())
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value)
    assert float(found[0]["gradient of 0.weight"].abs().sum()) > 0


def test_run__says_when_each_op_and_transfer_was(workers):
    program = training()
    placement = np.arange(program.graph.num_ops) * 3 // program.graph.num_ops
    workers.load(program, placement)
    run = workers.step(record=True)
    graph, placed = program.graph, check_placement(placement, program.graph, 3)
    for device, rows in enumerate(run.ops):
        ops = rows[:, 0].astype(int)
        expected = np.flatnonzero((placed == device) & (graph.op_class > 1))
        assert sorted(ops) == expected.tolist()
        assert (np.diff(rows[:, 1]) >= 0).all()
        assert (rows[:, 2] >= rows[:, 1]).all()
        assert run.busy_s[device] == pytest.approx((rows[:, 2] - rows[:, 1]).sum(), rel=1e-6)
    assert run.step_s == pytest.approx(max(rows[-1, 2] for rows in run.ops if len(rows)), abs=1e-9)
    assert len(run.transfers) == run.sent > 10


@pytest.mark.parametrize("how", [{"transport": "gloo"}, {"inline_bytes": -1}])
def test_threads_and_sockets__give_the_same(how):
    net, tokens = tangled()
    program = training()
    value = loss_of(net(tokens))
    value.backward()
    with Workers(2, devices="cpu", **how) as running:
        running.load(program, np.random.default_rng(4).integers(0, 2, program.graph.num_ops))
        running.step(seed=0)
        found = running.results()
        assert len(running.bounce(1000, 5)) == 5
    torch.testing.assert_close(found["output 0"], value.detach())
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[f"gradient of {name}"], parameter.grad)


# ---- plans, beside the simulator


@pytest.mark.parametrize("grouping", ["op", "colocation"])
def test_transfers__are_those_that_the_simulator_charges(grouping):
    """Where nothing is written in place, a plan sends each tensor that the simulator sends, and no other."""
    program = small_bert()
    graph, rng = program.graph, np.random.default_rng(0)
    for _ in range(5):
        placement = rng.integers(0, 3, graph.num_ops)
        if grouping == "colocation":
            placement = rng.integers(0, 3, graph.colocation.max() + 1)[graph.colocation]
        placement = check_placement(placement, graph, 3)
        timeline = simulate(graph, "v100x4", placement)
        simulated = sorted(
            (int(source), int(target), int(size))
            for (_, source, target), size in zip(timeline.transfers[:, :3], timeline.transfer_bytes, strict=True)
        )
        plan = make_plan(program, placement, 3)
        assert sorted((one.source, one.target, one.bytes) for one in plan.transfers) == simulated


def test_writers__wait_for_those_who_read_what_they_overwrite():
    program = training("sgd")
    for placement in placements(program, 5, 2, seed=1):
        plan = make_plan(program, check_placement(placement, program.graph, 2), 2)
        for part in plan.devices:
            for number, node in enumerate(part.nodes):
                assert all(after != number for after in node.then)
                assert len(set(node.then)) == len(node.then)
            updates = [number for number, node in enumerate(part.nodes) if node.kind == "update"]
            for number in updates:
                param = part.nodes[number].reads[0]
                readers = [n for n, one in enumerate(part.nodes) if param in one.reads and one.kind in ("op", "send")]
                assert all(number in part.nodes[reader].then for reader in readers)


# ---- what goes wrong


def test_placement__is_checked(workers):
    program = training()
    with pytest.raises(InputError, match=r"placement\[2\] is 3, allowed: 0 to 2"):
        workers.load(program, np.where(np.arange(program.graph.num_ops) == 2, 3, 0))
    with pytest.raises(InputError, match="unknown order 'lifo'"):
        workers.load(program, np.zeros(program.graph.num_ops, int), "lifo")
    with pytest.raises(InputError, match="order 'rank' goes by priorities; give those of the ops"):
        workers.load(program, np.zeros(program.graph.num_ops, int), "rank")


def test_priorities__say_what_a_worker_takes_first(workers):
    """On one worker ops begin in the order that is simulated, whatever the priorities are."""
    program = small_bert()
    graph = program.graph
    nowhere = np.zeros(graph.num_ops, int)
    orders = set()
    for seed in range(3):
        priorities = np.random.default_rng(seed).permutation(graph.num_ops).astype(float)
        workers.load(program, nowhere, "priority", priorities)
        rows = workers.step(record=True).ops[0]
        begun = rows[np.argsort(rows[:, 1], kind="stable"), 0].astype(int).tolist()
        timeline = simulate(graph, "v100x4", nowhere, priority=priorities)
        ran = np.flatnonzero(np.isin(np.arange(graph.num_ops), begun))
        # an op that takes no time starts with the next one
        assert begun == ran[np.lexsort((timeline.op_finish_s[ran], timeline.op_start_s[ran]))].tolist()
        orders.add(tuple(begun))
    assert len(orders) == 3


@pytest.mark.parametrize(
    ("module", "inputs", "target", "words"),
    [
        (nn.Embedding(4, 3), torch.tensor([1, 9]), "cpu", r"embedding\[\d\] fails: IndexError: index out of"),
        (nn.LSTM(4, 4), torch.zeros(3, 2, 4), "gpu", r"_cudnn_rnn\[\d+\] has no kernel here: capture .* --target cpu"),
    ],
)
def test_an_op_that_fails__is_named(module, inputs, target, words):
    arguments = {"module": module, "example_inputs": (inputs,), "optimizer": None, "target": target}
    program = build_program(arguments, "fails")
    with Workers(1, devices="cpu", timeout_s=60) as running:
        processes = running._processes
        running.load(program, np.zeros(program.graph.num_ops, int))
        with pytest.raises(InputError, match="^execute: worker 0: " + words):
            running.step()
    assert not any(process.is_alive() for process in processes)


def test_a_worker_that_dies__ends_all_with_one_line():
    program = training()
    with Workers(2, devices="cpu", timeout_s=60) as running:
        processes = running._processes
        running.load(program, np.arange(program.graph.num_ops) % 2)
        os.kill(processes[1].pid, signal.SIGKILL)
        with pytest.raises(InputError, match=r"^execute: worker 1 ended with status -9"):
            running.step()
    assert not any(process.is_alive() for process in processes)
    assert not os.path.exists(running.folder)


def test_a_worker_that_does_not_answer__is_ended():
    program = training()
    with Workers(1, devices="cpu", timeout_s=60) as running:
        running.load(program, np.zeros(program.graph.num_ops, int))
        os.kill(running._processes[0].pid, signal.SIGSTOP)
        running.timeout_s = 0.3
        with pytest.raises(InputError, match=r"worker 0 did not answer in 0.3 s; give a longer --timeout"):
            running.step()
        processes = running._processes
    assert not any(process.is_alive() for process in processes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"transport": "nccl"}, "transport is 'nccl'; on cpu give 'shared' or 'gloo'"),
        ({"transport": "pigeon"}, "unknown transport 'pigeon'"),
        ({"devices": "tpu"}, "unknown devices 'tpu'"),
    ],
)
def test_workers__refuse_what_they_cannot_do(arguments, words):
    with pytest.raises(InputError, match=words):
        Workers(2, **{"devices": "cpu", **arguments})
    with pytest.raises(InputError, match="workers is 0"):
        Workers(0)


def test_devices__are_gpus_where_there_are_enough(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert which_devices("auto", 2) == which_devices("cuda", 2) == "cuda"
    assert which_devices("auto", 3) == which_devices("cpu", 2) == "cpu"
    with pytest.raises(InputError, match="3 workers need a GPU each, and there are 2"):
        which_devices("cuda", 3)
