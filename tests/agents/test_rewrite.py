"""The agent of program rewriting: its network, the sb3-contrib policy, the trainer, the methods."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from graphopt_agents import lessons
from graphopt_agents import rewrite as agent
from graphopt_agents.core import checkpoints
from graphopt_agents.core.stepwise import Episode, Step
from graphopt_agents.lessons import Lesson
from graphopt_agents.methods import rewrite_rl, rewrite_rl_pretrained
from graphopt_agents.networks import rewrite as network_module
from graphopt_agents.networks.rewrite import (
    RewriteConfig,
    RewriteInput,
    RewriteNetwork,
    all_rules,
    root_gain,
    rule_numbers,
)
from graphopt_agents.policies import RewritePolicy
from sb3_contrib import MaskablePPO

from graphopt_gym.envs.rewrite import searches
from graphopt_gym.envs.rewrite.problem import RewriteProblem
from graphopt_gym.errors import InputError
from graphopt_gym.graphs.tensor_program import ProgramBuilder, TensorProgram
from graphopt_gym.graphs.zoo.programs import build_program, load_program, program_names
from graphopt_gym.graphs.zoo.programs.variants import write_variants
from graphopt_gym.search.evaluator import Evaluator, Method
from graphopt_gym.search.solve import solve
from graphopt_gym.solutions import validate
from graphopt_gym.wrappers import SB3VecEnv
from tests.agents.test_gdp import assert_same
from tests.commands import only_json
from tests.envs.rewrite.programs import attention, inception, recurrent

SMALL: dict[str, Any] = {"width": 16, "layers": 2}
RULES = torch.from_numpy(rule_numbers(all_rules(), all_rules()))


pytestmark = pytest.mark.usefixtures("one_thread")


def make_envs(num_envs: int, **arguments: Any) -> SB3VecEnv:
    return SB3VecEnv(gym.make_vec("RewriteOrder-v0", num_envs=num_envs, autoreset_mode="SameStep", **arguments))


def network(seed: int = 0, **config: Any) -> RewriteNetwork:
    torch.manual_seed(seed)
    made = RewriteNetwork(RewriteConfig(**{**SMALL, **config}))
    for layer in (made.query, made.stop, made.value[-1]):  # zero at first
        torch.nn.init.normal_(layer.weight, std=0.3)
    return made


def observed(envs: SB3VecEnv, steps: int = 3) -> dict[str, torch.Tensor]:
    """Observations after a few rewrites, different ones in each environment."""
    envs.seed(3)
    observations = envs.reset()
    for step in range(steps):
        actions = [1 + (step + row) % int(mask.sum() - 1) for row, mask in enumerate(observations["action_mask"])]
        observations = envs.step(np.array(actions))[0]
    return {name: torch.from_numpy(one) for name, one in observations.items()}


def test_network__does_not_depend_on_padding_or_on_the_rest_of_the_batch() -> None:
    programs = [attention(), recurrent(), inception()]
    arguments = {"graph": programs, "max_matches": 300}
    tight = observed(make_envs(5, **arguments))
    wide = observed(make_envs(5, **arguments, max_nodes=400, max_edges=900))
    made = network()
    with torch.no_grad():
        batch = RewriteInput.from_observations(tight, RULES)
        out = made(batch)
        logits = out.logits(batch, 300)
        padded = RewriteInput.from_observations(wide, RULES)
        for one in dataclasses.fields(RewriteInput):
            assert torch.equal(getattr(batch, one.name), getattr(padded, one.name)), one.name
        parts = []
        for row in range(5):
            single = RewriteInput.from_observations({name: one[row : row + 1] for name, one in tight.items()}, RULES)
            alone = made(single)
            torch.testing.assert_close(alone.logits(single, 300)[0], logits[row], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(alone.values[0], out.values[row], atol=1e-5, rtol=1e-4)
            parts.append(single)
        joined = RewriteInput.join(parts)
    for one in dataclasses.fields(RewriteInput):
        assert torch.equal(getattr(batch, one.name), getattr(joined, one.name)), one.name
    assert logits[0].unique().numel() > 5
    assert not torch.equal(out.values[0], out.values[1])


def test_network__goes_with_the_order_of_nodes_and_matches() -> None:
    observations = observed(make_envs(1, graph=inception()))
    batch = RewriteInput.from_observations(observations, RULES)
    rng = np.random.default_rng(0)
    nodes = torch.from_numpy(rng.permutation(len(batch.nodes)))
    edges = torch.from_numpy(rng.permutation(len(batch.edge_operand)))
    matches = torch.from_numpy(rng.permutation(len(batch.matches)))
    to = torch.empty(len(nodes) + 1, dtype=torch.int64)  # where a node goes to; what is not there stays
    to[nodes], to[-1] = torch.arange(len(nodes)), len(nodes)
    moved = dataclasses.replace(
        batch,
        nodes=batch.nodes[nodes],
        edge_index=to[batch.edge_index[:, edges]],
        edge_operand=batch.edge_operand[edges],
        matches=batch.matches[matches],
        match_rule=batch.match_rule[matches],
        match_roots=to[batch.match_roots[matches]],
    )
    made = network()
    with torch.no_grad():
        before, after = made(batch), made(moved)
    torch.testing.assert_close(after.match_scores, before.match_scores[matches], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.values, before.values, atol=1e-5, rtol=1e-4)
    assert before.match_scores.unique().numel() > 5


def test_network__tells_rules_operands_and_places_apart() -> None:
    batch = RewriteInput.from_observations(observed(make_envs(1, graph=recurrent())), RULES)
    made = network()
    two = (batch.match_roots[:, 1] < len(batch.nodes)).nonzero()[:1, 0]
    for changed in (
        {"match_rule": (batch.match_rule + 1) % len(RULES)},
        {"edge_operand": 1 - batch.edge_operand},
        {"match_roots": batch.match_roots.index_put((two,), batch.match_roots[two].flip(1))},
        {"edge_index": batch.edge_index.flip(0)},
    ):
        with torch.no_grad():
            assert not torch.allclose(
                made(batch).match_scores, made(dataclasses.replace(batch, **changed)).match_scores
            ), changed


def test_network__gradients_reach_every_weight() -> None:
    made = network()
    batch = RewriteInput.from_observations(observed(make_envs(3, graph=[attention(), inception()])), RULES)
    out = made(batch)
    loss = out.logits(batch).log_softmax(1)[:, :3].sum() + out.values.sum() + out.gains.sum()
    loss.backward()
    for name, weight in made.named_parameters():
        assert weight.grad is not None, name
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().sum() > 0, name


def test_rules__that_a_network_does_not_know_share_a_number() -> None:
    assert rule_numbers(("a", "b"), ("b", "new", "a", "newer")).tolist() == [1, 2, 0, 2]
    assert RewriteConfig(rules=["relu-twice"]).rules == ("relu-twice",)  # type: ignore[arg-type]
    for given, says in (({"width": 0}, "width is 0"), ({"layers": -1}, "layers is -1"), ({"rules": "x"}, "rules is")):
        with pytest.raises(InputError, match=says):
            RewriteConfig(**given)


def test_root_gain__keeps_the_sign() -> None:
    assert root_gain(np.array([0.25, -0.25, 0.0])).tolist() == [0.5, -0.5, 0.0]
    assert root_gain(torch.tensor([-0.04])).tolist() == pytest.approx([-0.2])


def test_policy__never_acts_beyond_the_matches_with_or_without_masks() -> None:
    envs = make_envs(6, graph=[attention(), recurrent(), inception()], max_matches=40)
    observations = observed(envs)
    policy = RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3, network=SMALL)
    torch.manual_seed(0)
    legal = observations["action_mask"].bool()
    for masks in (None, observations["action_mask"].numpy()):
        distribution = policy.get_distribution(observations, masks)
        chances = distribution.distribution.probs  # type: ignore[union-attr]
        assert float(chances[~legal].detach().abs().max()) == 0
        assert (chances[legal] > 0).all()
        for _ in range(20):
            actions, values, log_probs = policy(observations, action_masks=masks)
            assert legal.gather(1, actions[:, None]).all()
    assert values.shape == (6, 1)
    again, entropy = policy.evaluate_actions(observations, actions)[1:]
    torch.testing.assert_close(again, log_probs)
    assert (entropy > 0).all()
    only = np.zeros(legal.shape, bool)
    only[:, 0] = True
    assert policy(observations, action_masks=only)[0].tolist() == [0] * 6


def test_policy__trains_with_maskable_ppo_and_improves(tmp_path: Path) -> None:
    program = inception()
    envs = make_envs(8, graph=program, max_steps=12, max_matches=64)
    model = MaskablePPO(
        RewritePolicy,  # type: ignore[arg-type]
        envs,
        n_steps=24,
        batch_size=64,
        n_epochs=4,
        learning_rate=3e-3,
        gamma=1.0,
        ent_coef=0.003,
        policy_kwargs={"network": SMALL},
        seed=0,
        device="cpu",
    )

    def saved() -> float:
        """Mean share saved by eight episodes."""
        envs.seed(7)
        torch.manual_seed(0)
        observations, found = envs.reset(), []
        while len(found) < 8:
            masks = np.stack(envs.env_method("action_masks"))
            actions, _ = model.predict(observations, action_masks=masks)
            observations, _, _, infos = envs.step(actions)
            assert not any(info["illegal_action"] for info in infos)
            found += [info["saved"] for info in infos if "saved" in info]
        return float(np.mean(found))

    before = saved()
    model.learn(8 * 24 * 8)
    after = saved()
    assert after > before + 0.05
    model.save(tmp_path / "model.zip")
    loaded = MaskablePPO.load(tmp_path / "model.zip", device="cpu")
    observations = observed(envs)
    with torch.no_grad():
        torch.testing.assert_close(
            model.policy.predict_values(observations), loaded.policy.predict_values(observations)
        )


def test_policy__refuses_other_environments_and_rules() -> None:
    envs = make_envs(1, graph=attention(), rules=["fused activation"])
    with pytest.raises(InputError, match="environment_rules"):
        RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3)
    rules = [rule.name for rule in envs.env_method("problem", indices=0)[0].matcher.rules]
    RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3, environment_rules=tuple(rules))
    with pytest.raises(InputError, match="argument of the network"):
        RewritePolicy(envs.observation_space, envs.action_space, lambda _: 1e-3, network={"with": 8})
    other = gym.make("ChipletPartition-v0", graph="vgg11_b1", mode="fix")
    with pytest.raises(InputError, match="give it an environment of RewriteOrder-v0"):
        RewritePolicy(other.observation_space, other.action_space, lambda _: 1e-3)


# ------------------------------------------------------------------------------------------------------- the trainer


def problem_of(program: TensorProgram) -> RewriteProblem:
    return RewriteProblem(program, "t4")


def test_inputs__are_those_of_the_environment() -> None:
    args = agent.Args(max_matches=40, max_steps=30)
    for program in (attention(), inception()):
        task = agent.task_of(problem_of(program), args)
        steps = task.episodes.max_steps
        env = gym.make("RewriteOrder-v0", graph=program, max_matches=40, max_steps=steps, max_nodes=400, max_edges=900)
        observation, _ = env.reset(seed=0)
        row = np.zeros(1, np.int64)
        task.episodes.reset(row, [np.random.default_rng(0)])
        for step in range(12):
            flat = {name: torch.from_numpy(one[None]) for name, one in observation.items()}
            (seen,) = agent.Trainer.inputs(network(), task, row)
            theirs = RewriteInput.from_observations(flat, RULES)
            for one in dataclasses.fields(RewriteInput):
                torch.testing.assert_close(getattr(seen, one.name), getattr(theirs, one.name), msg=one.name)
            action = 1 + step * 7 % len(seen.matches)
            observation, reward, *_ = env.step(action)
            rewards, *_ = task.episodes.act(row, np.array([action]))
            assert rewards[0] == pytest.approx(reward)


def test_inputs__have_room_where_the_environment_alone_would_hide_matches() -> None:
    """A program may grow: no match is hidden for want of room, as the shipped policy was trained."""
    program = recurrent()
    task = agent.task_of(problem_of(program), agent.Args(max_matches=2000))
    row = np.zeros(1, np.int64)
    task.episodes.reset(row, [np.random.default_rng(0)])
    for _ in range(15):
        state = task.episodes.state(0)
        assert task.episodes.shown(0) == list(state.matches)
        growing = [index for index, one in enumerate(state.matches) if task.episodes.instance(0).grown[one.rule] > 0]
        task.episodes.act(row, np.array([1 + (growing or [0])[0]]))
    assert len(task.episodes.state(0).program) > len(program)


def test_episode__advantages_are_those_of_plain_python() -> None:
    episode = Episode(task=None, row=0)
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=5), rng.normal(size=5)
    for reward, value in zip(rewards, values, strict=True):
        episode.steps.append(Step(None, 1, 0.0, value, reward))
    assert episode.reward == pytest.approx(rewards.sum())
    for gae_lambda in (0.0, 0.7, 1.0):
        episode.finish(gae_lambda)
        errors = rewards + np.append(values[1:], 0.0) - values
        for at, step in enumerate(episode.steps):
            expected = sum(gae_lambda**k * error for k, error in enumerate(errors[at:]))
            assert step.gain == pytest.approx(expected)
            assert step.target == pytest.approx(expected + values[at])


def lessons_of(task: agent.Task) -> list[Lesson]:
    return lessons.lessons_of(task, lambda rows: agent.Trainer.inputs(network(), task, rows))


def test_lessons__lead_to_the_best_and_then_stop() -> None:
    task = agent.task_of(problem_of(load_program("small_fire")), agent.Args())
    evaluator = Evaluator(task.problem, 500)
    searches.greedy(evaluator, np.random.default_rng(0))
    task.visit([evaluator.best], 0.0)
    task.looked_around = True
    lessons = lessons_of(task)
    steps = len(evaluator.best.trace)
    assert len(lessons) == steps + 1 > 3
    assert [bool(lesson.right[0]) for lesson in lessons] == [False] * steps + [True]
    assert not lessons[-1].right[1:].any()
    state = task.problem.original
    for lesson in lessons[:-1]:
        # what was taken, in its own order, is always right; so is at least one match of each state
        assert lesson.right[1:].any()
        saved = [task.saved(state, state.apply(match)) for match in state.matches]
        np.testing.assert_allclose(lesson.gains, root_gain(np.array(saved)), rtol=1e-5, atol=1e-7)
        state = state.apply(state.matches[int(lesson.gains.argmax())])  # greedy's own choice
    assert state.cost == evaluator.best_cost
    task.looked_around = False
    known = [int((~lesson.gains.isnan()).sum()) for lesson in lessons_of(task)]
    assert known == [1] * steps + [0]


def test_ppo_loss__raises_what_was_better_and_learns_to_foresee() -> None:
    args = agent.Args(**SMALL, entropy=0.0, learning_rate=3e-3)
    task = agent.task_of(problem_of(load_program("small_fire")), args)
    made = network()
    trainer = agent.Trainer(args, [task], made)
    episodes = trainer.play(made, [(task, 6)], (0,), lambda: 0.0, torch.Generator().manual_seed(0))
    steps = [step for episode in episodes for step in episode.steps][:24]
    for index, step in enumerate(steps):
        step.gain, step.target = (1.0 if index % 2 else -1.0), 0.3
    before, measures = trainer.ppo_loss(steps)
    assert measures["clipped_share"] == pytest.approx(0.0)
    assert measures["divergence"] == pytest.approx(0.0, abs=1e-5)
    for _ in range(10):
        trainer.optimizer.zero_grad()
        trainer.ppo_loss(steps)[0].backward()
        trainer.optimizer.step()
    with torch.no_grad():
        log_probs = trainer.act(made, [step.input for step in steps])[0].log_softmax(1)
        after, measured = trainer.ppo_loss(steps)
    change = log_probs[range(len(steps)), [step.action for step in steps]] - torch.tensor([s.log_prob for s in steps])
    assert change[1::2].mean() > 0 > change[::2].mean()
    assert after < before
    assert measured["gain_error"] < measures["gain_error"]
    assert measured["value_error"] < measures["value_error"]


def test_training__beats_random_walks_at_equal_evaluations() -> None:
    problem = problem_of(build_program("bert_tensat", layers=4, width=256, heads=4))
    ours, theirs = [], []
    for seed in range(2):
        ours.append(solve(problem, rewrite_rl, budget=300, seed=seed))
        theirs.append(solve(problem, "random_walk", budget=300, seed=seed))
    assert [solution.evaluations for solution in ours] == [300, 300]
    assert all(solution.outcome.valid for solution in ours)
    assert all(problem.check_trace(solution.decision, solution.trace) == "" for solution in ours)
    assert np.mean([one.outcome.cost for one in ours]) < 0.9 * np.mean([one.outcome.cost for one in theirs])


def test_training__that_was_stopped_goes_on_exactly(tmp_path: Path) -> None:
    given = {**SMALL, "graphs": "small_fire,small_scores,small_chain", "episodes": 2, "graphs_per_update": 3}
    given |= {"starts": 30}
    whole = agent.train(agent.Args(**given, updates=4), tmp_path / "whole")
    agent.train(agent.Args(**given, updates=2), tmp_path / "parts")
    parts = agent.train(agent.Args(**given, updates=4), tmp_path / "parts", resume=True)
    assert whole.evaluations == parts.evaluations
    states = []
    for name in ("whole", "parts"):
        state = checkpoints.load_checkpoint(tmp_path / name, "rewrite").state
        curve = [{key: row[key] for key in row if key != "wall_s"} for row in json.loads(state.pop("curve"))]
        state.pop("wall_s")
        for task in state["tasks"].values():
            task["improved"] = [(row[0], row[2]) for row in task["improved"]]
        states.append((state, curve))
    assert_same(*states)
    for solution in parts.solutions():
        assert solution.outcome.valid
        path = tmp_path / "parts" / f"solution_{solution.problem.graph.name}_t4.json"
        assert validate(path).mismatches == ()
    with (tmp_path / "parts" / "curve.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4 * 3


def test_evaluate__zero_shot_and_fine_tuned(tmp_path: Path) -> None:
    args = agent.Args(**SMALL, graphs="small_fire,small_scores", updates=6, episodes=4)
    agent.train(args, tmp_path / "run")
    own = agent.evaluate(tmp_path / "run")
    assert (own.problem.graph.name, own.problem.cluster.name) == ("small_fire", "t4")
    more = agent.evaluate(tmp_path / "run", samples=5)
    assert more.outcome.cost <= own.outcome.cost
    assert more.evaluations > own.evaluations
    other = agent.evaluate(tmp_path / "run", "small_recurrent", "v100_pcie_16gb", samples=2, seed=1)
    assert other.outcome.valid
    tuned = agent.evaluate(tmp_path / "run", "small_recurrent", updates=2)
    assert tuned.outcome.valid
    assert tuned.problem.check_trace(tuned.decision, tuned.trace) == ""
    started = agent.train(agent.Args(**SMALL, graphs="small_chain", updates=1), start_from=tmp_path / "run")
    assert started.updates == 1
    with pytest.raises(InputError, match="other sizes"):
        agent.train(agent.Args(graphs="small_chain", updates=1), start_from=tmp_path / "run")
    run = agent.method_run(start_from=tmp_path / "run")
    solution = solve(problem_of(attention()), Method("rl_pretrained", run, "", "", random=True), budget=60)
    assert (solution.evaluations, solution.outcome.valid) == (60, True)
    assert solution.trace


def test_method__ends_where_no_rule_matches() -> None:
    builder = ProgramBuilder("bare")
    program = builder.finish([builder.op("softmax", builder.input("x", (4, 4)))])
    solution = solve(problem_of(program), rewrite_rl, budget=50)
    assert (solution.evaluations, solution.stopped_by) == (1, "finished")


def test_method__starts_anew_where_it_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    trainers: list[agent.Trainer] = []
    make = agent.Trainer.__init__
    monkeypatch.setattr(agent.Trainer, "__init__", lambda *given: (trainers.append(given[0]), make(*given))[1])
    monkeypatch.setattr(network_module, "STOP", 60.0)  # a policy that only stops
    solution = solve(problem_of(load_program("small_fire")), rewrite_rl, budget=4)
    assert (solution.evaluations, solution.stopped_by) == (4, "finished")
    assert solution.outcome.metrics["saved_percent"] == 0
    assert [trainer.updates for trainer in trainers] == [agent.SETTLED] * 3 + [0]
    assert len({trainer.args.seed for trainer in trainers}) == 4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"graphs": ""}, "graphs is an empty list"),
        ({"clusters": "t4,t4"}, "clusters has 2 entries for 1 graphs"),
        ({"episodes": 0}, "episodes is 0; give a whole number, at least 1"),
        ({"starts": -1}, "starts is -1; give a whole number, at least 0"),
        ({"learning_rate": 0}, "learning_rate is 0; give a number above 0"),
        ({"imitation": -1.0}, "imitation is -1.0; give a number, at least 0"),
        ({"gae_lambda": 1.5}, "gae_lambda is 1.5; give a number from 0 to 1"),
        ({"decay": 1}, "decay is 1; give true or false"),
        ({"rules": 3}, "rules is 3; give names"),
        ({"upadtes": 2}, "unknown argument of rewrite 'upadtes'; did you mean 'updates'?"),
    ],
)
def test_arguments__bad_ones_are_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as error:
        agent.Trainer.args_from(given)
    assert says in str(error.value)


def test_command__trains_goes_on_and_evaluates(graphopt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--set=width=8", "--set=layers=1", "--set=episodes=2"]
    code, _, err = graphopt(
        "train", "rewrite", "--graphs", "small_fire,small_halves", *settings, "--updates", 1, "--out", "run"
    )
    assert code == 0, err
    code, out, err = graphopt("train", "rewrite", "--out", "run", "--resume", "--updates", 2, "--json")
    assert code == 0, err
    rows = only_json(out)["rows"]
    assert [row["graph"] for row in rows] == ["small_fire", "small_halves"]
    assert all(row["valid"] and row["metrics"]["same_outputs_when_executed"] for row in rows)
    code, out, err = graphopt("evaluate", "run", "--graph", "small_chain", "--cluster", "t4", "--samples", 3)
    assert code == 0, err
    assert "small_chain on t4" in out
    for arguments, says in (
        (["--graphs", "small_fier"], "small_fire"),
        (["--graphs", "small_fire", "--clusters", "v100x4"], "has 4 devices"),
        (["--graphs", "small_fire", "--set", "episode=2"], "episodes"),
    ):
        code, _, err = graphopt("train", "rewrite", *arguments, "--updates", 1)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert says in err


def test_variants__are_programs_of_their_own_names_and_repeat(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    paths, again = (write_variants(tmp_path / folder, 9, seed=1) for folder in ("a", "b"))
    programs = [load_program(path) for path in paths]
    assert [program.name for program in programs] == [Path(path).stem for path in paths]
    assert len({program.name for program in programs}) == 9
    assert all(len(problem_of(program).original.matches) > 3 for program in programs)
    assert [load_program(path).fingerprint for path in again] == [program.fingerprint for program in programs]
    assert agent.Args(graphs=f"small,{paths[0]},small").graphs == (*program_names("small"), paths[0])


@pytest.mark.skipif("rewrite" not in checkpoints.shipped_checkpoints(), reason="no policy of rewriting is shipped")
def test_shipped_policy__saves_more_than_taso_with_a_tenth_of_its_evaluations() -> None:
    problem = problem_of(build_program("bert_tensat", layers=5, width=640, heads=10))
    ours = solve(problem, rewrite_rl_pretrained, budget=100)
    theirs = solve(problem, "taso", budget=1000)
    assert ours.outcome.valid
    assert ours.outcome.cost < theirs.outcome.cost < problem.original_s
