"""alpha-NAS, its ablations and baselines: smaller networks on real images, cells of NAS-Bench-201; hours, resumable.

Every network of a run is trained from scratch, and kept as text with its validation accuracy. The test split is read
for the seed and for what a run ends with. Last, the networks that are fastest by simulation are timed on this CPU.
"""

import gzip
import json
import math
import statistics
import sys
import time

import numpy as np

from experiments.runner import Entry, Experiment
from experiments.runner.curves import panels, save
from experiments.runner.runs import claim
from experiments.runner.tables import mean, published
from graphopt_gym.envs.architecture.episodes import hypervolume
from graphopt_gym.envs.architecture.front_page import Point, front_page
from graphopt_gym.envs.architecture.images import DATA, load_images
from graphopt_gym.envs.architecture.methods import front
from graphopt_gym.envs.architecture.nasbench import all_cells, load_table, sizes
from graphopt_gym.envs.architecture.program import parse_architecture
from graphopt_gym.envs.architecture.training import Trainer
from graphopt_gym.files import write_file, write_text
from graphopt_gym.registration import make_problem
from graphopt_gym.search.solve import solve

EPOCHS = 3
CASES = {  # by the seed: what costs, and the trainings of a run, that of the seed among them
    "cnn_8": {"objective": "error", "trainings": 40},
    "resnet_8": {"objective": "params", "trainings": 24},
    "efficientnet_8": {"objective": "flops", "trainings": 24},
    "vit_8": {"objective": "flops", "trainings": 16},
    "resnet_28": {"objective": "params", "trainings": 12},
}
EPOCHS_OF = {"vit_8": 10, "efficientnet_8": 8, "resnet_28": 2, "cnn_8": 8}
TABLE, TABLE_SEEDS, TABLE_CALLS = "nasbench201", 20, 500
AFTER = (25, 50, 100, 200, 500)
TEST_SEEDS = (0, 1, 2)  # of trainings that the test accuracy of a network is the mean of
DEVICES = {"T4": "t4", "V100": "v100_sxm2_32gb", "CPU": "cpu_xeon_e5_2698_v4"}
ABLATIONS = ("mixing_only", "depth_only", "shape_only", "undirected")
OTHERS = ("primer_like", "automl_zero_like", "evolution", "random")
SEARCHES = ("alpha_nas", *ABLATIONS, *OTHERS)
ON_ONE, ON_TWO, ON_MANY = ("resnet_8",), ("resnet_8", "cnn_8"), tuple(CASES)
ENTRIES = {
    "alpha_nas": Entry("alpha-NAS", graphs=ON_MANY),
    "width_scaling": Entry("width scaling", graphs=ON_MANY, random=False),
    "undirected": Entry("random subgraphs", graphs=ON_TWO),
    "mixing_only": Entry("mixing alone", graphs=ON_ONE),
    "depth_only": Entry("depth alone", graphs=ON_ONE),
    "shape_only": Entry("shape alone", graphs=ON_ONE),
    "primer_like": Entry("Primer-like", graphs=ON_ONE),
    "automl_zero_like": Entry("AutoML-Zero-like", graphs=ON_ONE),
    "evolution": Entry("regularised evolution", graphs=ON_TWO),
    "random": Entry("random search", graphs=ON_TWO),
}
ENTRIES |= {
    f"table_{name}": Entry(label, name, graphs=(TABLE,), random=False)
    for name, label in (
        ("random", "random search"), ("local_search", "local search"), ("evolution_random", "regularised evolution"),
        ("hill_climbing_random", "hill climbing"), ("annealing_random", "annealing"),
        ("cross_entropy_random", "cross-entropy"),
    )
}  # fmt: skip


def arguments(case):
    if case == TABLE:
        return {"graph": TABLE, "track": "table", "objective": "error"}
    recipe = {"epochs": EPOCHS_OF.get(case, EPOCHS), "limit_s": 120.0}
    return {"graph": case, "track": "trained", "objective": CASES[case]["objective"], "recipe": recipe}


def run(name, problem, seed):
    """A run on images: all of its networks, and the test accuracy of the last. On the table: 20 seeds of a method."""
    if problem.track == "table":
        return run_on_table(name, problem)
    case, began = problem.seed.name, time.perf_counter()
    problem = make_problem(EXPERIMENT.env, **arguments(case))  # so that it knows the networks of this run alone
    budget = CASES[case]["trainings"] if name != "width_scaling" else 100
    solution = solve(problem, name, budget=budget, seed=seed)
    if solution.stopped_by == "interrupt":
        raise KeyboardInterrupt
    networks = [
        {"text": one.text(), "parameters": one.parameters, "flops": one.flops, "accuracy": found.value,
         "reason": found.reason}
        for one, found in problem.measured.values()
    ]  # fmt: skip
    return {
        **solution.to_json(), "wall_s": time.perf_counter() - began, "networks": networks,
        "test": test_accuracies(problem, solution.decision), "seed_test": test_accuracies(problem, problem.seed),
        "seed_accuracy": problem.seed_quality, "parameters": solution.outcome.metrics["parameters"],
        "flops": solution.outcome.metrics["flops"], "accuracy": solution.outcome.metrics["accuracy"],
        "seed_parameters": problem.seed_sizes[0], "seed_flops": problem.seed_sizes[1],
    }  # fmt: skip


def test_accuracies(problem, network):
    """On the test split, of a training with each seed."""
    return [Trainer(problem.data, problem.recipe, seed).test_accuracy(network) for seed in TEST_SEEDS]


def run_on_table(name, problem):
    method, began = ENTRIES[name].method, time.perf_counter()
    best, regret = None, {str(calls): [] for calls in AFTER}
    for seed in range(TABLE_SEEDS):
        problem, looked = make_problem(EXPERIMENT.env, **arguments(TABLE)), []
        solution = solve(logged(problem, looked), method, budget=TABLE_CALLS, seed=seed)
        if solution.stopped_by == "interrupt":
            raise KeyboardInterrupt
        for calls in AFTER:
            error = min(looked[:calls]) * (1 - problem.seed_quality)
            regret[str(calls)].append(100 * (problem.table.best[1] - (1 - error)))
        best = solution if best is None or solution.outcome.cost < best.outcome.cost else best
    return {**best.to_json(), "seed": 0, "wall_s": time.perf_counter() - began, "regret": regret}


def logged(problem, looked):
    """The problem, which puts every cost that it is asked for into a list, in order."""
    plain = problem.costs

    def costs(decisions):
        found = plain(decisions)
        looked.extend(found[0].tolist())
        return found

    problem.costs = costs
    return problem


def by_parameters():
    """Regret of the cells of the most parameters, the best of as many as are looked at: no search at all."""
    table = load_table()
    cells = [tuple(cell) for cell in all_cells().tolist()]
    ordered = sorted(cells, key=lambda cell: (-sizes(cell)[0], cell))
    accuracy = np.maximum.accumulate([table.accuracy[cell] for cell in ordered])
    return {str(calls): 100 * (table.best[1] - float(accuracy[calls - 1])) for calls in AFTER}


def volume(run):
    """Hypervolume of a run's networks: parameters to the seed's, and validation accuracy."""
    points = [(one["parameters"] / run["seed_parameters"], one["accuracy"]) for one in run["networks"]]
    return hypervolume(points)


def of_method(runs, case, name):
    mine = runs.of(case, name)
    if not mine:
        return None
    return {
        "seeds": len(mine), "cost": mean(run["cost"] for run in mine),
        "parameters": mean(float(run["parameters"]) for run in mine),
        "flops": mean(float(run["flops"]) for run in mine),
        "accuracy": mean(run["accuracy"] for run in mine),
        "test": mean(statistics.mean(run["test"]) for run in mine),
        "no_worse": sum(statistics.mean(run["test"]) >= statistics.mean(run["seed_test"]) for run in mine),
        "volume": mean(map(volume, mine)), "volumes": [volume(run) for run in mine],
        "networks": mean(float(len(run["networks"])) for run in mine),
        "good": mean(
            float(sum(one["accuracy"] >= run["seed_accuracy"] for one in run["networks"])) for run in mine
        ),
        "failed": sum(bool(one["reason"]) for run in mine for one in run["networks"]),
        "on_front": mean(float(on_front(run)) for run in mine),
    }  # fmt: skip


def on_front(run):
    points = [(one["parameters"], one["accuracy"]) for one in run["networks"]]
    return int(front(np.array(points, float)).sum())


def not_run(runs):
    """What has fewer runs than it should, in words."""
    lacking = []
    for name, entry in ENTRIES.items():
        wanted = EXPERIMENT.seeds if EXPERIMENT.is_random(name) else EXPERIMENT.seeds[:1]
        for case in entry.graphs:
            there = sum((case, name, seed) in runs for seed in wanted)
            if there < len(wanted):
                lacking.append(f"{entry.label} on {case} ({there} of {len(wanted)} seeds)")
    return lacking


def summarise(runs, out):
    rows = []
    for case, given in CASES.items():
        first = next((run for job, run in runs.items() if job[0] == case), None)
        if first is None:
            continue
        methods = {name: found for name in ENTRIES if (found := of_method(runs, case, name))}
        rows.append({
            "case": case, **given, "epochs": EPOCHS_OF.get(case, EPOCHS), "seed_parameters": first["seed_parameters"],
            "seed_flops": first["seed_flops"], "seed_accuracy": first["seed_accuracy"],
            "seed_test": statistics.mean(first["seed_test"]), "methods": methods,
        })  # fmt: skip
    table = {}
    for name, entry in ENTRIES.items():
        found = runs.of(TABLE, name)
        if found:
            values = found[0]["regret"]
            table[entry.label] = {
                calls: {"mean": statistics.mean(one), "spread": statistics.pstdev(one)} for calls, one in values.items()
            }
    return {
        "rows": rows, "table": table, "by_parameters": by_parameters(), "best_cell": load_table().best[1],
        "test_images": {name: len(load_images(name).test.labels) for name in DATA}, "missing": not_run(runs),
        "published": published("alpha_nas_results.csv"), "timed": timed(out), "seeds": EXPERIMENT.names_in(runs),
    }  # fmt: skip


# -- words of the page -------------------------------------------------------------------------------------------------


def marks(published):
    """What the paper reports, in words, of its table of results."""

    def of(seed, quantity):
        row = next(one for one in published if (one["seed_model"], one["quantity"]) == (seed, quantity))
        return float(row["seed_value"]), float(row["result"])

    before, after = of("resnet34", "parameters_at_no_worse_accuracy")
    low, high = of("cnn_2layer", "accuracy")
    return (
        f"ResNet-34 {before:g} M to {after:g} M parameters ({after / before - 1:+.0%}) and "
        f"{of('resnet34', 'flops_change_at_no_worse_accuracy')[1]:+g} % of FLOPs, the two-layer CNN {high - low:+.1f} "
        f"points, ViT-S/16 {of('vit_s16', 'flops_change_at_no_worse_accuracy')[1]:+g} % of FLOPs and "
        f"{of('vit_s16', 'parameters_change_at_no_worse_accuracy')[1]:+g} % of parameters, EfficientNet-B0 "
        f"{of('efficientnet_b0', 'flops_and_parameters_change_at_same_accuracy')[1]:+g} % of both"
    )


def standard_error(accuracy, images):
    """Of an accuracy on so many images, in points."""
    return 100 * math.sqrt(accuracy * (1 - accuracy) / images)


def ablated(rows):
    """The methods of resnet_8, those with three seeds or more trainings than width scaling's aside."""
    (row,) = (row for row in rows if row["case"] == "resnet_8")
    return {name: found for name, found in row["methods"].items() if name != "width_scaling"}


def sorted_texts(volumes):
    return " ".join(f"{volume:.4f}" for volume in volumes)


def versus(rows, name):
    """In how many seeds alpha-NAS's hypervolume is above a method's."""
    found = ablated(rows)
    if name == "alpha_nas" or "alpha_nas" not in found:
        return ""
    pairs = list(zip(found["alpha_nas"]["volumes"], found[name]["volumes"], strict=False))
    return f"alpha-NAS above in {sum(mine > theirs for mine, theirs in pairs)} of {len(pairs)}"


def verdict(rows):
    """Whether alpha-NAS's front is ahead of the others', and of width scaling's, in words."""
    found = ablated(rows)
    others = [name for name in found if name != "alpha_nas"]
    if "alpha_nas" not in found or not others:
        return "alpha-NAS or all others have not been run: nothing is said."
    mine = found["alpha_nas"]["volume"]
    ahead = [name for name in others if mine > found[name]["volume"]]
    behind = [ENTRIES[name].label for name in others if name not in ahead]
    words = [f"By the mean, alpha-NAS is ahead of {len(ahead)} of {len(others)}" + (
        f", and not of {', '.join(behind)}." if behind else "."
    )]  # fmt: skip
    spreads = [statistics.stdev(one["volumes"]) for one in found.values() if len(one["volumes"]) > 1]
    if spreads:
        between = statistics.stdev(one["volume"] for one in found.values())
        words.append(
            f"Over the seeds of a method the standard deviation is {statistics.mean(spreads):.3f} on average, over the "
            f"methods' means {between:.3f}."
        )
    (row,) = (row for row in rows if row["case"] == "resnet_8")
    width = row["methods"].get("width_scaling")
    if width:
        better = [name for name in found if found[name]["volume"] > width["volume"]]
        words.append(
            f"The {width['networks']:.0f} widths of the seed alone come to {width['volume']:.3f}, which "
            + (f"only {', '.join(ENTRIES[name].label for name in better)} is above." if better else "none is above.")
        )
    return " ".join(words)


def table_verdict(table, by_parameters):
    """Which searches are ahead of parameter counts on the table, by the mean, in words."""
    words = []
    for calls in map(str, AFTER):
        ahead = [label for label, one in table.items() if one[calls]["mean"] < by_parameters[calls]]
        words.append(f"after {calls} {', '.join(ahead) if ahead else 'none'}")
    return f"Ahead of the cells of the most parameters, which no search needs: {'; '.join(words)}."


def cells(found):
    return [f"{found[str(calls)]['mean']:.2f} ± {found[str(calls)]['spread']:.2f}" for calls in AFTER]


def parameter_cells(found):
    return [f"{found[str(calls)]:.2f}" for calls in AFTER]


def us(seconds):
    return f"{1e6 * seconds:.0f} us"


# -- hardware ----------------------------------------------------------------------------------------------------------


def all_networks(runs, case):
    """Of all runs on a case, no twins: (architecture, validation accuracy)."""
    found = {}
    for job, one in runs.items():
        if job[0] == case:
            for network in one["networks"]:
                if not network["reason"]:
                    found.setdefault(network["text"], network["accuracy"])
    return [(parse_architecture(text), accuracy) for text, accuracy in found.items()]


def measure(out, runs, graphs):
    """Of each case's networks that are no worse than the seed by validation, the fastest by simulation on each device;
    they and the seed are timed on this CPU, in turns."""
    for case in CASES:
        path = out / "measured" / f"{case}.json"
        if case not in graphs or not runs.of(case, "alpha_nas"):
            continue
        with claim(path.with_suffix(".claim")) as mine:
            if mine:
                write_file(path, (json.dumps(measured(runs, case)) + "\n").encode(), make_folders=True)
                print(f"timed {case}", file=sys.stderr, flush=True)


def measured(runs, case):
    networks = all_networks(runs, case)
    seed_accuracy = runs.of(case, "alpha_nas")[0]["seed_accuracy"]
    problems = {
        name: make_problem(EXPERIMENT.env, graph=case, cluster=device, objective="time")
        for name, device in DEVICES.items()
    }
    seed = next(iter(problems.values())).seed
    graphs = [one.to_graph() for one, _ in networks]  # captured once for all devices
    chosen, rows = {}, []
    for name, problem in problems.items():
        seconds = [math.fsum(problem.model.op_times(graph, problem.device).tolist()) for graph in graphs]
        points = np.array([(one_s, accuracy) for one_s, (_, accuracy) in zip(seconds, networks, strict=True)])
        fit = [at for at, (_, accuracy) in enumerate(networks) if accuracy >= seed_accuracy]
        best = min(fit, key=seconds.__getitem__)
        network, accuracy = networks[best]
        chosen[name] = network
        rows.append({"device": name, "seed_s": problem.seconds(seed), "best_s": seconds[best], "accuracy": accuracy,
                     "parameters": network.parameters, "networks": len(networks), "on_front": int(front(points).sum()),
                     "text": network.text(), "costs_version": problem.costs_version})  # fmt: skip
    times = in_turns({"seed": seed, **chosen})
    for row in rows:
        row |= {"really_s": times[row["device"]], "seed_really_s": times["seed"]}
    return {"case": case, "rows": rows}


def in_turns(networks, rounds=300):
    """Median seconds of an inference of one image by torch on one thread of this CPU, the networks in turns."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    modules = {name: one.to_module().eval() for name, one in networks.items()}
    image = torch.zeros(1, *next(iter(networks.values())).input_shapes[0])
    found = {name: [] for name in modules}
    with torch.no_grad():
        for turn in range(rounds + 20):
            for name, module in modules.items():
                began = time.perf_counter()
                module(image)
                if turn >= 20:
                    found[name].append(time.perf_counter() - began)
    torch.set_num_threads(threads)
    return {name: statistics.median(times) for name, times in found.items()}


def timed(out):
    """What was timed, here or else before."""
    from graphopt_gym.data import data_path

    kept = data_path("architecture", "measured.json")
    stored = json.loads(kept.read_text("utf-8")) if kept.exists() else []
    here = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob("measured/*.json"))]
    rows = {one["case"]: one for one in [*stored, *here]}
    return [rows[case] for case in CASES if case in rows]


def store(room, runs):
    """Every network as text, and what was timed."""
    texts = sorted({one["text"] for job, run in runs.items() if job[0] != TABLE for one in run["networks"]})
    write_file(room / "networks.json.gz", gzip.compress(json.dumps(texts).encode(), mtime=0), make_folders=True)
    measured_rows = json.loads((room / "summary.json").read_text("utf-8"))["timed"]
    write_text(room / "measured.json", json.dumps(measured_rows) + "\n")


def draw(runs, summary, folder):
    """All networks of a case, parameters against validation accuracy, and the front of each method."""
    cases = [row["case"] for row in summary["rows"]]
    figure, axes = panels(max(1, len(cases)), 3, (4.2, 3.4))
    colours = {"alpha_nas": "C0", "undirected": "C1", "primer_like": "C2", "random": "C3", "width_scaling": "k"}
    for axis, case in zip(axes, cases, strict=False):
        for name, colour in colours.items():
            mine = [one for run in runs.of(case, name) for one in run["networks"] if not one["reason"]]
            if not mine:
                continue
            points = np.array([(one["parameters"], one["accuracy"]) for one in mine], float)
            axis.scatter(*points.T, s=5, color=colour, alpha=0.3)
            best = points[front(points)]
            best = best[np.argsort(best[:, 0])]
            axis.step(best[:, 0], best[:, 1], color=colour, where="post", label=ENTRIES[name].label)
        row = next(row for row in summary["rows"] if row["case"] == case)
        axis.plot(row["seed_parameters"], row["seed_accuracy"], "*", color="gold", markeredgecolor="k", markersize=11)
        axis.set_xscale("log")
        low = min(0.9 * row["seed_accuracy"], row["seed_accuracy"] - 0.05)
        axis.set_ylim(low, min(1.0, row["seed_accuracy"] + 0.12))
        axis.set_title(case, fontsize=10)
    if cases:
        axes[0].legend(fontsize=7, loc="lower right")
    figure.supxlabel("parameters")
    figure.supylabel("validation accuracy (the seed: a star)")
    figure.tight_layout(rect=(0.02, 0, 1, 1))
    save(figure, folder / "images" / "architecture_front.png", 80)
    points = [
        Point(parse_architecture(one["text"]), one["accuracy"], ENTRIES[job[1]].label)
        for job, run in runs.items()
        if job[0] == "resnet_8"
        for one in run["networks"]
        if not one["reason"]
    ]
    if points:
        seed = EXPERIMENT.problem("resnet_8").seed
        page = front_page(seed, points, "Networks found from resnet_8 on digits, by parameters and validation accuracy")
        write_file(folder / "architecture_front.html", page.encode())


EXPERIMENT = Experiment(
    room="architecture",
    env="ArchitectureSearch-v0",
    arguments=arguments,
    graphs=(*CASES, TABLE),
    entries=ENTRIES,
    run=run,
    measure=measure,
    summarise=summarise,
    store=store,
    draw=draw,
    cost=(".3f", "invalid", 1.0),
    kept=(
        "seed", "cost", "valid", "evaluations", "wall_s", "fingerprints", "history", "decision", "networks", "test",
        "seed_test", "seed_accuracy", "parameters", "flops", "accuracy", "seed_parameters", "seed_flops", "regret",
    ),
)  # fmt: skip
