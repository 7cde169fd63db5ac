"""``graphopt execute``: decisions that really run, on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import ClusterOption, GraphOption, JsonFlag
from graphopt_gym.cli.files import command_of
from graphopt_gym.errors import InputError
from graphopt_gym.files import check_output, write_text


def execute(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE|DIR…", help="Solutions, or folders of them.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="PACKAGE.MODULE:FUNCTION",
            help="What the graph was captured from; a graph of the zoo needs none.",
        ),
    ] = None,
    graph: GraphOption = None,
    cluster: ClusterOption = None,
    repeat: Annotated[int, typer.Option("--repeat", help="Steps of each decision that count.")] = 20,
    decisions: Annotated[
        int,
        typer.Option(
            "--decisions",
            help="Run so many of each graph: further ones by methods and at random, for the rank correlation.",
        ),
    ] = 0,
    op_times: Annotated[
        str,
        typer.Option(
            "--op-times", help="What is simulated: model, the cluster's cost model; measured, times of one worker."
        ),
    ] = "model",
    order: Annotated[
        str | None,
        typer.Option(
            "--order", help="What a worker runs next, in place of what the solutions say: fifo, program or stream."
        ),
    ] = None,
    devices: Annotated[
        str, typer.Option("--devices", help="auto (GPUs where there are enough), cpu or cuda.")
    ] = "auto",
    transport: Annotated[
        str, typer.Option("--transport", help="How tensors go: auto, shared (memory), gloo or nccl.")
    ] = "auto",
    timeout: Annotated[float, typer.Option("--timeout", help="Most seconds of a step, or of the start.")] = 300.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the random decisions.")] = 0,
    write_cluster: Annotated[
        Path | None,
        typer.Option(
            "--write-cluster",
            metavar="FILE",
            help="In place of solutions: measure the link between workers, and write a cluster of --workers --device.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME|FILE", help="Of --write-cluster: see graphopt list devices.")
    ] = None,
    workers: Annotated[int, typer.Option("--workers", help="Of --write-cluster.")] = 2,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write everything here, as JSON.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run what solutions decided on for real: a worker process a device, on this machine; simulated beside measured."""
    if write_cluster is not None:
        if paths:
            raise InputError("--write-cluster measures links, without solutions; leave one of the two out")
        _write_cluster(write_cluster, device, workers, devices, transport, as_json)
        return
    if not paths:
        raise InputError("name a solution to run, or --write-cluster; write one with: graphopt solve … --out FILE")
    if device is not None:
        raise InputError(
            "--device goes with --write-cluster; solutions run on the cluster that they name, or --cluster"
        )
    from graphopt_gym.report.tables import Table
    from graphopt_gym.solutions import load_solutions

    check_output(out, inputs=(*paths, graph, cluster))
    stored = load_solutions(paths, common.warn)
    commands = {command_of("execute", solution) for solution in stored}
    if len(commands) > 1:
        raise InputError("these solutions are of several tasks; run those of one at a time")
    with common.status("execute") as say:
        result = commands.pop()(
            stored,
            model=model,
            graph=graph,
            cluster=cluster,
            repeat=repeat,
            decisions=decisions,
            op_times=op_times,
            order=order,
            devices=devices,
            transport=transport,
            timeout_s=timeout,
            seed=seed,
            say=say,
        )
    if out:
        write_text(out, json.dumps(common.plain(result), indent=1) + "\n")
    if as_json:
        common.print_json(result)
    else:
        for table in result["tables"]:
            common.show(Table.of(table), as_json=False)
    if not result["ok"]:
        common.warn("results differ from those of one worker: see the column 'difference'")
        raise typer.Exit(1)


def _write_cluster(path: Path, device: str | None, workers: int, devices: str, transport: str, as_json: bool) -> None:
    from graphopt_gym.execution.links import write_cluster
    from graphopt_gym.units import format_seconds

    if device is None:
        raise InputError(
            "--write-cluster needs --device, by name or file; graphopt calibrate makes that of this machine"
        )
    check_output(path, inputs=(device,))
    with common.status("links between workers") as say:
        found = write_cluster(path, device, workers, devices=devices, transport=transport, say=say)
    if as_json:
        common.print_json(found)
        return
    common.say(
        f"{found['file']}: {workers} {found['device']}, links of {format_seconds(found['latency_s'])} and "
        f"{found['link_bytes_per_s'] / 1e9:.2f} GB/s ({found['transport']}; fit within {found['fit_error']:.0%})"
    )
