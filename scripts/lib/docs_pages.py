"""Pages of the documentation that are made from the code, as hooks of mkdocs: see ``mkdocs.yml``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import graphopt_gym as gg
from graphopt_gym.registration import env_ids
from graphopt_gym.search.evaluator import Method
from graphopt_gym.task import Task

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md")  # beside the README, where people look for them
API = {  # page -> modules
    "Problems and solutions": ("problem", "solutions", "search.solve", "errors"),
    "Tasks": ("task", "registration", "testing.problems", "testing.tasks"),
    "Environments": tuple(f"envs.core.{name}" for name in ("env", "vector", "episodes", "roster", "observation")),
    "Catalogs": ("catalog",),
    "Graphs": ("graphs.graph", "graphs.io", "graphs.capture", "graphs.zoo", "graphs.generators"),
    "Programs": ("graphs.tensor_program.program", "graphs.zoo.programs"),
    "Hardware": ("hardware.cluster", "hardware.package", "hardware.cost_model"),
    "Simulator": (
        "simulator.simulator",
        "simulator.own_costs",
        "simulator.lowering",
        "simulator.timeline",
        "simulator.tasks",
    ),
    "Wrappers": ("wrappers.sb3", "wrappers.graphs"),
    "Reports": ("report.files", "report.gantt", "report.perfetto", "report.html"),
    "Agents": ("agent", *(f"graphopt_agents.core.{name}" for name in ("run", "one_shot", "stepwise", "sb3"))),
}


def _asked(method: Method) -> str:
    return "; with " + ", ".join(f"`{name}={rule!r}`" for name, rule in method.rules.items()) if method.rules else ""


def environment_page(task: Task, env_id: str) -> str:
    """What an environment's docstring says, and the methods of its task."""
    env = task.env_class(env_id)
    source = env.__module__.replace(".", "/") + ".py"
    methods = "\n".join(
        f"| `{method.name}` | {method.summary}{_asked(method)} | {method.source} |"
        for method in task.method_table().values()
    )
    summary = task.variants[env_id].summary
    return f"""# {env_id}

{summary[0].upper()}{summary[1:]}. Task `{task.name}`: {task.summary}. Made from the docstring of `{env.__name__}` in
`{source}`.

{inspect.getdoc(env)}

## Methods of its task

Beside those that take any problem (`graphopt list methods --env {env_id}` names all):

| Method | What it does | Source |
|---|---|---|
{methods}
"""


def pages() -> dict[str, str]:
    """Text by path below ``docs``."""
    made = {name: (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](") for name in PROJECT}
    rows = []
    for task in gg.tasks().values():
        for env_id, variant in task.variants.items():
            made[f"environments/{env_id}.md"] = environment_page(task, env_id)
            rows.append(f"| [{env_id}]({env_id}.md) | {variant.summary} |")
    made["environments/index.md"] = "\n".join(["# Environments\n", "| Id | What is decided |", "|---|---|", *rows, ""])
    for title, modules in API.items():
        named = [name if name.startswith("graphopt_agents") else f"graphopt_gym.{name}" for name in modules]
        parts = [f"# {title}\n", *(f"## `{name}`\n\n::: {name}\n" for name in named)]
        made[f"api/{_slug(title)}.md"] = "\n".join(parts)
    made["api/index.md"] = "\n".join(
        ["# API\n", "After `import graphopt_gym as gg`:\n", "| Name | |", "|---|---|"]
        + [f"| {_link(name)} | {_summary(getattr(gg, name))} |" for name in gg.__all__]
    )
    return made


def _link(name: str) -> str:
    """A public name, which leads to what it names where that is on another page."""
    thing = getattr(gg, name)
    path = f"{thing.__module__}.{thing.__qualname__}"
    return f'<autoref identifier="{path}" optional><code>gg.{name}</code></autoref>'


def _summary(thing: object) -> str:
    """The first paragraph of a docstring."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills in the navigation."""
    made = {
        "Environments": ["environments/index.md", *(f"environments/{env_id}.md" for env_id in env_ids())],
        "API": ["api/index.md", *(f"api/{_slug(title)}.md" for title in API)],
    }
    for entry in config.nav or []:
        if isinstance(entry, dict):
            entry.update({name: listed for name, listed in made.items() if name in entry})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_content(html: str, **_: object) -> str:
    """Sphinx's roles, such as ``:func:`solve```, lead to what they name where that is in the API."""
    return re.sub(
        r":(?:class|func|meth|data|mod|attr):<code>~?\.?([\w.]+)</code>",
        r'<autoref identifier="\1" optional><code>\1</code></autoref>',
        html,
    )
