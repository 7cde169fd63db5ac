"""The parts of the experiment on gang scheduling that rest on no search: what Pathways' paper shows, and what it takes
to simulate. Each gives what JSON can hold; all but ``scale`` give the same numbers again."""

import fit_gang

from graphopt_gym.benchmarks.gang import scale_report
from graphopt_gym.simulator.gang import chain, simulate_gangs, together
from graphopt_gym.simulator.gang.pathways import dispatch_per_s, staged_per_s

CALL_S, NODES, LENGTH = 0.33e-3, 16, 320  # a client's computations: their time (read); a call's, all (chosen)
CORES = 512
TENANTS = (1, 2, 4, 8, 16)
WEIGHTS = ((1, 1, 1, 1), (1, 2, 4, 8))
WINDOW_S = 1.0  # in which shares are looked at
STAGES = (1, 2, 4, 8, 16, 32, 64, 128)
NOT_FITTED = {  # what a row rests on beside the two fits, where something that the paper does not say was chosen
    "decoder, spmd, 128 cores": "8 cores share a layer",
    "two islands of 512, 64B": "2**20 tokens a step",
}


def paper():
    """The rows of the paper's tables, and how many computations a second are dispatched."""
    report = fit_gang.report()
    rows = report["rows"]
    for row in rows:
        kind = "fitted" if row["fitted"] else "predicted"
        row["kind"] = "predicted, with a chosen value" if row["row"] in NOT_FITTED else kind
        row["chosen"] = NOT_FITTED.get(row["row"], "1,024 tokens a sequence" if "decoder" in row["row"] else "")
    two = {form: {who: dispatch_per_s(2, form=form, controllers=who) for who in ("single", "multi")}
           for form in ("op_by_op", "chained", "fused")}  # fmt: skip
    first = {"cores": 2, **{f"{form} {who}": value for form, both in two.items() for who, value in both.items()}}
    return report | {"rows": rows, "dispatch_per_s": [first, *report["dispatch_per_s"]]}


def staged():
    """Computations a second of pipelines whose stages are dispatched in parallel, or one after the other."""
    return [{"stages": s, **{how: staged_per_s(s, how) for how in ("parallel", "sequential")}} for s in STAGES]


def tenants_run(weights, length=LENGTH):
    """Clients that call computations of 0.33 ms on the same cores."""
    one = chain(length, CORES, CALL_S, nodes=NODES, name="client")
    return simulate_gangs(
        together([one] * len(weights), [float(w) for w in weights], "tenants"), "pathways_b",
        first_core=[0] * len(weights), policy="stride",
    )  # fmt: skip


def tenancy():
    """How busy the cores are with more and more clients; and the shares of four in a second in which all have work."""
    busy = []
    for clients in TENANTS:
        run = tenants_run([1] * clients)
        span_s = run.makespan_s - run.gang_start_s.min()
        busy.append({"clients": clients, "busy": float(run.class_busy_s[0] / span_s)})
    shares = []
    for weights in WEIGHTS:
        run = tenants_run(weights, 4096)
        begin = float(run.gang_start_s.min()) + 0.1
        done = run.shares(begin, begin + WINDOW_S)
        assert all(run.gang_finish_s[run.program.client == client].max() > begin + WINDOW_S for client in range(4))
        shares.append([
            {"weights": list(weights), "client": client, "due": weight / sum(weights),
             "got": float(done[client] / done.sum())}
            for client, weight in enumerate(weights)
        ])  # fmt: skip
    return {"busy": busy, "shares": shares}


def scale():
    """Seconds and memory of the simulator, of machines of 8 to 100,000 cores and programs of 10 to 100,000 gangs."""
    columns = ("cores", "gangs", "tasks", "classes", "lower_ms", "run_ms", "us_per_gang", "peak_memory_bytes")
    return [{name: row[name] for name in columns} for row in scale_report()["rows"]]


PARTS = {"paper": paper, "staged": staged, "tenancy": tenancy, "scale": scale}
