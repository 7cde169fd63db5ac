"""The table of commands."""

from __future__ import annotations

import typer

from graphopt_gym.cli import agents, bench, calibrate, execute, files, listing, reproduce, solving, warmup

app = typer.Typer(
    name="graphopt",
    help="Optimise machine-learning graphs: classical methods and learned agents on one simulator.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("list")(listing.list_things)
app.command("solve")(solving.solve)
app.command("compare")(solving.compare)
app.command("train")(agents.train)
app.command("evaluate")(agents.evaluate)
app.command("report")(files.report)
app.command("validate")(files.validate)
app.command("measure")(files.measure)
app.command("execute")(execute.execute)
app.command("export")(files.export)
app.command("capture")(files.capture)
app.command("calibrate")(calibrate.calibrate)
app.command("reproduce")(reproduce.reproduce)
app.command("bench")(bench.bench)
app.command("warmup")(warmup.warmup)


@app.callback(invoke_without_command=True)
def options(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        import graphopt_gym

        print(graphopt_gym.__version__)
        raise typer.Exit
