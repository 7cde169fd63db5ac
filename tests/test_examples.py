"""The examples for other libraries run, each as the program that it is; and what TorchRL asks of infos is there."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from graphopt_gym.registration import env_ids

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "scripts" / "examples"
# RLlib pins a Gymnasium that is older than ours: scripts/test puts that, and what else RLlib needs, into this folder
OLDER = Path(sys.prefix) / "gymnasium-1.2.2"


def run_python(*arguments, first=()):
    """What a Python of its own prints; packages are looked for in the folders ``first`` before all others."""
    path = os.pathsep.join(map(str, [*first, ROOT, ROOT / "agents", os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_example(name, *arguments, first=()):
    return run_python(EXAMPLES / name, *arguments, first=first)


def figures(text, pattern):
    return [float(found) for found in re.findall(pattern, text)]


def test_cleanrl__trains():
    pytest.importorskip("torch")
    printed = run_example("cleanrl_ppo.py", "--total-timesteps", 2 * 16 * 128)
    means = figures(printed, r"steps: mean ([\d.]+) s")
    (best,) = figures(printed, r"best placement: ([\d.]+) s")
    assert len(means) == 2
    assert 0.2 < best < min(means)


def test_sb3_with_masks__saves_time():
    pytest.importorskip("sb3_contrib")
    printed = run_example("sb3_vector_masks.py", "--steps", 1024)
    saved = dict(re.findall(r"^(small_\w+): ([\d.-]+)% of its time saved$", printed, flags=re.M))
    assert set(saved) == {"small_chain", "small_scores"}
    assert all(float(share) <= 100 for share in saved.values())


@pytest.mark.parametrize("envs", [1, 8])
def test_torchrl__trains_on_one_environment_and_on_several(envs):
    if importlib.util.find_spec("torchrl") is None:
        pytest.skip("TorchRL is not installed: the extra `test` brings it")
    printed = run_example("torchrl_ppo.py", "--envs", envs, "--decisions", 2048, "--batch", 1024)
    assert len(figures(printed, r"mean return of \d+ episodes: (-?[\d.]+)")) == 2
    (cost,) = figures(printed, r"likeliest placement: ([\d.]+) s")
    assert 0.2 < cost < 2


def test_rllib__trains_with_masks_on_the_gymnasium_that_it_pins():
    if not (OLDER / "pyarrow").is_dir():
        pytest.skip("RLlib's own dependencies are not installed: scripts/test does it")
    printed = run_example("rllib_masked.py", "--iterations", 1, "--batch", 512, first=[OLDER])
    (mean,) = figures(printed, r"mean return: (-?[\d.]+)")
    assert -2 < mean < 1


def test_notebook__runs(tmp_path, monkeypatch):
    pytest.importorskip("sb3_contrib")
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "getting_started.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            text = "".join(cell["source"]).replace("5_000", "512")
            exec(compile(text, f"getting_started.ipynb: {number}", "exec"), names)
    assert (tmp_path / "best.json").stat().st_size
    assert names["best"].method == "annealing"
    assert names["info"]["cost"] > 0


def read_light_infos():
    """Steps all environments with TorchRL's readers of infos, on one and on several; prints the ids."""
    from torchrl.envs import GymEnv, GymWrapper
    from torchrl.envs.utils import check_env_specs

    small = {
        "ChipletPartition-v0": {"graph": "bert_tiny_b16", "cluster": "mcm4"}, "RewriteOrder-v0": {"max_steps": 5},
        "Fusion-v0": {"graph": "transformer_xl_2layer", "cluster": "v100x2"},
        "GraphOptimization-v0": {"graph": "transformer_xl_2layer", "cluster": "v100x2", "tasks": "placement"},
        "Scheduling-v0": {"graph": "random:num_ops=64-100:seed=1", "cluster": "v100x2"},
        "GangScheduling-v0": {"graph": "toy_tenants", "cluster": "toy_islands"},
        "GangSchedulingOneShot-v0": {"graph": "toy_tenants", "cluster": "toy_islands"},
        "ArchitectureSearch-v0": {"graph": "nasbench201", "cluster": "t4", "track": "table", "max_steps": 5},
    }  # fmt: skip
    for env_id in env_ids():
        arguments = {"info": "light", **small.get(env_id, {"graph": "rnnlm_2layer", "cluster": "v100x2"})}
        one = GymEnv(env_id, **arguments).auto_register_info_dict()  # tries frameskip=…, and does without
        how = {"vectorization_mode": "vector_entry_point", "autoreset_mode": "Disabled"}
        several = GymWrapper(gym.make_vec(env_id, 3, **how, **arguments)).auto_register_info_dict()
        for env, shape in ((one, (130,)), (several, (3, 130))):
            check_env_specs(env)
            rollout = env.rollout(130, break_when_any_done=False)
            assert rollout.batch_size == shape
            assert rollout["next", "done"].any()
            assert rollout["next", "illegal_action"].shape == shape
        print(env_id)


def test_torchrl__reads_light_infos():
    """Its readers ask every value for its dtype, and every info for values of the same shapes."""
    if importlib.util.find_spec("torchrl") is None:
        pytest.skip("TorchRL is not installed: the extra `test` brings it")
    # importing TorchRL changes how processes are started, so not in the process of other tests
    printed = run_python("-c", "from tests.test_examples import read_light_infos; read_light_infos()")
    assert re.findall(r"^\w+-v\d+$", printed, flags=re.M) == list(env_ids())
