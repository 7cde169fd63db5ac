"""Functions that are the same on every processor, and op times that follow from them."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys

import numpy as np

from graphopt_gym.hardware import functions

GRAPHS = ("amoebanet", "inception_v3_b32", "transformer_xl_2layer", "bert_base")
CODE = f"""
import hashlib
from graphopt_gym.graphs.zoo import load_graph
from graphopt_gym.hardware.cluster import load_cluster
from graphopt_gym.simulator.simulator import Simulator
found = hashlib.sha256()
for graph in {GRAPHS!r}:
    for cluster in ("p100x2_v100x2", "t4x4", "h100x8", "v100x2_cpu"):
        found.update(Simulator(load_graph(graph), load_cluster(cluster)).durations_s.tobytes())
for seed in range(5):
    found.update(load_cluster(f"random:seed={{seed}}").fingerprint.encode())
    found.update(load_graph(f"random:seed={{seed}}").fingerprint.encode())
print(found.hexdigest())
"""


def test_functions__are_those_of_the_c_library_elementwise() -> None:
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(0, 8, (40, 5)))
    values[0, 0] = values[3, 1]
    for name, plain in (("exp", math.exp), ("log", math.log)):
        given = np.log(values) if name == "exp" else values
        found = getattr(functions, name)(given)
        assert found.shape == given.shape
        assert found.ravel().tolist() == [plain(one) for one in given.ravel()]
    assert functions.power(values, -0.7).ravel().tolist() == [one**-0.7 for one in values.ravel().tolist()]
    assert functions.power(0.3, values).ravel().tolist() == [0.3**one for one in values.ravel().tolist()]


def test_functions__at_the_borders() -> None:
    assert functions.log([0.0, 1.0]).tolist() == [-math.inf, 0.0]
    assert functions.power(np.array([0.0, 1e300]), -2.0).tolist() == [math.inf, 0.0]
    assert functions.power(np.array([1e300]), 2.0).tolist() == [math.inf]
    assert functions.exp(np.empty(0)).shape == (0,)
    assert functions.exp(-math.inf) == 0.0


def test_op_times__do_not_depend_on_what_the_processor_has() -> None:
    """With and without the instructions that NumPy chooses its loops by, to the last bit."""
    from numpy._core import _multiarray_umath as umath

    there = [name for name in umath.__cpu_dispatch__ if umath.__cpu_features__.get(name)]
    found = set()
    for disabled in ([], there):
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(disabled)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CODE], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout.splitlines()[-1])
    assert len(found) == 1
    assert len(found.pop()) == len(hashlib.sha256().hexdigest())
