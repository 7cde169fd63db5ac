"""``graphopt calibrate``: a device of one's own, from timed kernels or measured steps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt_gym.cli import common
from graphopt_gym.cli.common import JsonFlag
from graphopt_gym.errors import InputError, quoted
from graphopt_gym.extras import need
from graphopt_gym.fields import positive, whole
from graphopt_gym.files import check_output, write_file

if TYPE_CHECKING:
    from graphopt_gym.hardware.calibration.steps import Step
    from graphopt_gym.hardware.calibration.table import Timed
    from graphopt_gym.hardware.cluster import Device

TARGETS = ("cpu", "cuda")
RUNTIME = "onnxruntime"  # this machine's CPU as onnxruntime uses it


def calibrate(
    device: Annotated[
        str,
        typer.Option(
            "--device",
            "-d",
            help="cpu or cuda: this machine's. onnxruntime: its CPU as that runs programs. Or a device "
            "by name or file, to start from its facts.",
        ),
    ] = "cpu",
    kernels: Annotated[
        Path | None, typer.Option("--kernels", metavar="CSV", help="Fit to these kernel times, and time none.")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            "--step",
            metavar="GRAPH=SECONDS",
            help="A measured step: a graph by name or file, or module:function as capture takes it. May be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The device file (TOML); left out: among your own devices, by its name."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="What to call the device.")] = None,
    threads: Annotated[int, typer.Option("--threads", help="Of a processor, that a step uses.")] = 1,
    dtypes: Annotated[
        str, typer.Option("--dtypes", help="With commas between: float32, bfloat16, float16, float64.")
    ] = "float32",
    launch: Annotated[
        str, typer.Option("--launch", help="How the measured steps were run: eager, back_to_back or graph.")
    ] = "eager",
    quick: Annotated[bool, typer.Option("--quick", help="A third of the kernels, and smaller ones.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the kernel times that are there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure a device and write a device file: one is a cluster by its path, cluster files take it by its name.

    Times kernels on this machine, in minutes (Ctrl-C keeps those that are done), fits the cost model to them, and runs
    eight small steps of its own for what kernels alone do not show. With --kernels it fits to a table of kernel times,
    with --step it fits a few factors to measured steps.
    """
    from graphopt_gym.hardware.calibration.device import check_name, device_toml, own_folder
    from graphopt_gym.hardware.cluster import load_device

    whole("threads", threads, 1, 4096)
    if device == RUNTIME:
        if kernels is not None or step:
            raise InputError("--device onnxruntime times its own programs; leave --kernels and --step out")
        _of_onnxruntime(name or "cpu", out, threads, quick, as_json)
        return
    target = device if device in TARGETS else None
    if step and target and kernels is None:
        raise InputError(
            f"--step needs a device to start from, and {device} is not one: name one of the catalog (graphopt list "
            "devices) with --device, such as one that calibrate wrote"
        )
    base = None if target else load_device(device)
    own_name = f"my_{'gpu' if target == 'cuda' else 'cpu'}" if base is None else f"{base.name}_calibrated"
    called = check_name(name or (out.stem if out else own_name))
    path = out or own_folder() / f"{called}.toml"
    if path.suffix.lower() != ".toml":
        raise InputError(f"--out {quoted(os.fspath(path))}: give a file that ends in .toml, which the catalog reads")
    if out:
        check_output(path, [kernels])
    steps = _steps(step or [], base.kind if base is not None else target or "")
    tables: list[dict[str, Any]] = []
    if kernels is not None or not steps:
        made = _from_kernels(called, target, base, kernels, path, threads, dtypes.split(","), quick, resume, tables)
    else:
        assert base is not None
        made = _renamed(base, called)
    factors: dict[str, float] = {}
    if steps:
        from graphopt_gym.hardware.calibration.steps import fit_steps
        from graphopt_gym.hardware.cost_model import load_cost_model

        made, factors, rows = fit_steps(made, steps, load_cost_model(launch))
        tables.append({"title": "Measured steps", "rows": rows})
    about = [f"Written by graphopt calibrate ({'; '.join(_origin(target, kernels, steps, threads))})."]
    write_file(path, device_toml(made, about).encode(), make_folders=True)
    if as_json:
        common.print_json(
            {"device": made.name, "file": str(path), "factors": factors or _factors(made), "tables": tables}
        )
        return
    from graphopt_gym.report.tables import Table

    for one in tables:
        common.show(Table.of(one), False)
    for key, value in (factors or _factors(made)).items():
        common.say(f"{key}: {value:.4g}")
    common.say(f"device {made.name}: one of them is --cluster {path}; a cluster file names it as device")


def _of_onnxruntime(name: str, out: Path | None, threads: int, quick: bool, as_json: bool) -> None:
    from graphopt_gym.hardware.calibration.device import check_name, device_toml, own_folder
    from graphopt_gym.hardware.calibration.onnxruntime import design, onnxruntime_device, time_programs

    need("onnx", "onnxruntime", what="--device onnxruntime")
    path = out or own_folder() / f"{check_name(name)}.toml"
    if path.suffix.lower() != ".toml":
        raise InputError(f"--out {quoted(os.fspath(path))}: give a file that ends in .toml, which the catalog reads")
    if out:
        check_output(path)
    programs = design(quick)
    with common.progress_bar("programs", len(programs)) as update:
        rows = time_programs(programs, threads, lambda count, text: update(count, text) if update else None)
    made, errors = onnxruntime_device(name, rows, threads)
    about = [f"Written by graphopt calibrate --device onnxruntime ({len(rows)} kernels of onnxruntime timed here, "
             f"{threads} thread{'s' * (threads != 1)})."]  # fmt: skip
    write_file(path, device_toml(made, about).encode(), make_folders=True)
    table = {"title": "Kernels: error of prediction from the others", "rows": errors}
    if as_json:
        common.print_json({"device": made.name, "file": str(path), "factors": {}, "tables": [table]})
        return
    from graphopt_gym.report.tables import Table

    common.show(Table.of(table), False)
    common.say(f"device {made.name}: programs are priced for it with --cluster {name if out is None else path}")


def _origin(target: str | None, kernels: Path | None, steps: Sequence[Step], threads: int) -> list[str]:
    said = [f"kernels timed here, {threads} thread{'s' * (threads != 1)}" if target == "cpu" else "kernels timed here"]
    if kernels is not None:
        said = [f"kernel times of {kernels.name}"]
    elif target is None:
        said = []
    return said + [f"step {one.name} = {one.seconds:.4g} s" for one in steps]


def _renamed(device: Device, name: str) -> Device:
    from dataclasses import replace

    return replace(device, name=name)


def _factors(device: Device) -> dict[str, float]:
    """What a step needs beside its kernels, for people."""
    known = {name: device.fitted[name] for name in ("in_model_products", "in_model_streams") if name in device.fitted}
    return known | {f"launch_us.{mode}": value for mode, value in device.fitted.get("launch_us", {}).items()}


def _steps(given: Sequence[str], kind: str) -> list[Step]:
    from graphopt_gym.graphs.zoo import GRAPHS
    from graphopt_gym.hardware.calibration.steps import Step

    found = []
    for text in given:
        what, equals, seconds = text.rpartition("=")
        if not equals or not what:
            raise InputError(f"--step {quoted(text)} is not GRAPH=SECONDS, e.g. --step bert_base=0.182")
        try:
            value = float(seconds)
        except ValueError:
            raise InputError(f"--step {quoted(text)}: {quoted(seconds)} is no number of seconds") from None
        positive(f"--step {quoted(what)}: seconds", value)
        if ":" in what and not os.path.exists(what):
            from graphopt_gym.graphs.capture import capture_from_spec

            need("torch", what="--step with a function")
            graph = capture_from_spec(what, **({"target": "cpu"} if kind == "cpu" else {}))
        else:
            graph = GRAPHS.load(what)
        found.append(Step(what, graph, value))
    return found


def _from_kernels(
    name: str, target: str | None, base: Device | None, kernels: Path | None, path: Path, threads: int,
    dtypes: list[str], quick: bool, resume: bool, tables: list[dict[str, Any]],
) -> Device:  # fmt: skip
    """The device of timed kernels: of this machine's, or of a table."""
    from graphopt_gym.hardware.calibration.device import fit_device, this_gpu, this_processor
    from graphopt_gym.hardware.calibration.fit import exchanged, fit_terms
    from graphopt_gym.hardware.calibration.table import of_device, possible, read_kernels

    rows: list[Timed]
    anchors: list[Any] = []
    launches: dict[str, float] = {}
    if kernels is not None:
        where = f"kernel times {quoted(os.fspath(kernels))}"
        rows = of_device(read_kernels(kernels), base.name if base else name, where)
        if base is not None:
            rows = possible(rows, base, where, common.warn)
        for text in exchanged(rows, base):
            common.warn(text)
    elif target is None:
        raise InputError(
            f"--device {base.name if base else name} is not of this machine: give cpu or cuda to time kernels here, "
            "or --kernels, or --step"
        )
    else:
        need("torch", what="timing kernels")
        rows, anchors, launches = _timed(name, target, path.with_suffix(".csv"), threads, dtypes, quick, resume)
    if base is not None:
        facts = _renamed(base, name)
    elif target == "cuda":
        facts = this_gpu(name, "cuda", rows)
    else:
        facts = this_processor(name, threads, rows)
    with common.status(f"fitting {len(rows)} kernels"):
        prices, errors = fit_terms(rows)
        made, steps = fit_device(facts, prices, anchors, rows, launches)
    tables.append({"title": "Kernels: error of prediction from the others", "rows": errors})
    if steps:
        tables.append({"title": "Steps that the factors were fitted to", "rows": steps})
    return made


def _timed(
    name: str, target: str, path: Path, threads: int, dtypes: list[str], quick: bool, resume: bool
) -> tuple[list[Timed], list[Any], dict[str, float]]:
    import torch

    from graphopt_gym.hardware.calibration.anchors import fastest, measure_anchors
    from graphopt_gym.hardware.calibration.session import planned, time_design
    from graphopt_gym.hardware.calibration.timing import clock_of, measure_launches

    if target == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: torch sees no GPU here; give --device cpu, or --kernels with times from elsewhere"
        )
    design = planned("cpu" if target == "cpu" else "gpu", [dtype.strip() for dtype in dtypes], quick)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        clock = clock_of(target, threads)
        with common.status("running small steps, which are run again after the kernels") as say:
            before_kernels = measure_anchors(target, clock, say, quick)
        common.warn(f"timing {len(design)} kernels; they are kept in {path}")
        with common.progress_bar("kernels", len(design)) as update:
            try:
                rows = time_design(
                    design, target, name, path, clock, resume=resume, warn=common.warn,
                    done=lambda count, text: update(count, text) if update else None,
                )  # fmt: skip
            except KeyboardInterrupt:
                common.warn(f"interrupted; what is done is kept in {path}: go on with --resume")
                raise typer.Exit(130) from None
        with common.status("running small steps") as say:
            anchors = fastest([before_kernels, measure_anchors(target, clock, say, quick)])
            launches = measure_launches(target) if target == "cuda" else {}
    finally:
        torch.set_num_threads(before)
    return rows, anchors, launches
