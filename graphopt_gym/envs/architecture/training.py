"""Networks trained from scratch: validation accuracy, the same for the same seed; kept on disk.

What a network is trained on, and how, is a data set (:mod:`.images`), a :class:`Recipe` and a seed. A network that
fails, diverges, or takes more time or memory than it may is an invalid result with its reason. Choices are made by
validation accuracy; the test split is read by :func:`test_accuracy` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt_gym.envs.architecture.images import Images, Split, load_images
from graphopt_gym.envs.architecture.program import Architecture, parse_architecture
from graphopt_gym.errors import InputError, one_line
from graphopt_gym.extras import need
from graphopt_gym.fields import check_fields, choice, known_keys, whole
from graphopt_gym.files import write_file
from graphopt_gym.search.workers import Interrupted, check_workers, run_side_by_side

if TYPE_CHECKING:
    import torch

CACHE = "GRAPHOPT_TRAINED"  # the environment variable that names the folder of results
VERSION = 1  # of what is computed here: results of another are not taken


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW, a linear warm-up and a cosine to zero, gradients clipped.

    Attributes:
        epochs, batch: passes over the training split, and images a step; the last images that fill no batch are left
            out of a pass.
        learning_rate, weight_decay, clip: of AdamW, and the largest norm of a gradient.
        warmup: share of the steps in which the rate rises.
        limit_s: seconds of this process's CPU time that a network may take.
        limit_mib: memory that a training step may take, as :func:`step_bytes` estimates it.
    """

    epochs: int = 8
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    clip: float = 1.0
    warmup: float = 0.1
    limit_s: float = 60.0
    limit_mib: float = 1024.0

    def __post_init__(self) -> None:
        check_fields(
            self, {"epochs": 1, "batch": 2}, ["learning_rate", "clip", "limit_s", "limit_mib"], ["weight_decay"],
            ["warmup"],
        )  # fmt: skip


RECIPES = {
    "quick": Recipe(epochs=3),
    "standard": Recipe(),
    "long": Recipe(epochs=30, limit_s=600.0),
}


def load_recipe(recipe: str | Recipe | Mapping[str, Any]) -> Recipe:
    """A recipe by name, or of its fields. Raises InputError for an unknown one."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, Mapping):
        known_keys("recipe", recipe, Recipe.__dataclass_fields__)
        return Recipe(**recipe)
    return RECIPES[choice("recipe", recipe, RECIPES)]


@dataclass(frozen=True)
class Result:
    """What the training of a network came to.

    Attributes:
        accuracy: on the validation split, 0 to 1, after the last epoch; 0 where it failed.
        reason: why it failed; "" where it did not.
        losses: mean training loss of each epoch.
        accuracies: on the validation split after each epoch.
        seconds: CPU time.
        test_accuracy: where that was asked for.
    """

    accuracy: float
    reason: str = ""
    losses: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    seconds: float = 0.0
    test_accuracy: float | None = None

    @property
    def valid(self) -> bool:
        return not self.reason


def step_bytes(architecture: Architecture, batch: int) -> int:
    """Memory of a training step, roughly: every tensor and its gradient, the weights with what AdamW keeps of them."""
    tensors = sum(math.prod(op.shape) for op in architecture.ops)
    return 4 * (2 * batch * tensors + 4 * architecture.parameters)


def cache_folder() -> Path:
    """Where results are kept: ``$GRAPHOPT_TRAINED``, else ``trained`` in the user's ``.graphopt``."""
    return Path(os.environ.get(CACHE) or Path.home() / ".graphopt" / "trained")


class Trainer:
    """Trains architectures on a data set, several at a time, and keeps what came of them.

    Args:
        data: a name of :data:`.images.DATA`.
        recipe: a :class:`Recipe`, or the name of one.
        seed: of initialisation, batches and dropout.
        workers: processes of this machine, or where Ray is; see :func:`run_side_by_side`. The results are the same.
        cache: the folder of results; None: :func:`cache_folder`.

    Raises:
        InputError: an unknown name, a bad seed or workers; torch or the data's package is not installed.
    """

    def __init__(
        self,
        data: str,
        recipe: str | Recipe | Mapping[str, Any] = "standard",
        seed: int = 0,
        workers: int | str = 1,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        need("torch", what="training")
        self.images = load_images(data)
        self.recipe, self.seed = load_recipe(recipe), whole("seed", seed)
        self.workers = check_workers(workers)
        self.cache = Path(cache) if cache is not None else cache_folder()
        self.trained = 0  # by this object, not taken from what was kept
        self._known: dict[str, Result] = {}

    @property
    def key(self) -> str:
        """Of all that a result depends on beside the network."""
        parts = [VERSION, self.images.fingerprint, asdict(self.recipe), self.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def path(self, architecture: Architecture) -> Path:
        """Where the result of an architecture is kept."""
        return self.cache / self.images.name / self.key / f"{architecture.fingerprint}.json"

    def kept(self, architecture: Architecture) -> Result | None:
        """A result that is there already."""
        known = self._known.get(architecture.fingerprint)
        if known is None and (known := _read(self.path(architecture))) is not None:
            self._known[architecture.fingerprint] = known
        return known

    def results(
        self, architectures: Sequence[Architecture], progress: Callable[[int, Result], Any] | None = None
    ) -> list[Result]:
        """What comes of each; those that are not there yet are trained, equal ones once, and kept as they are done.

        Args:
            progress: called with (position among those that are trained, result).

        Raises:
            InputError: an architecture for other images.
            Interrupted: what is done is kept.
        """
        todo: dict[str, Architecture] = {}
        for one in architectures:
            self.images.check_fits(one.name, one.input_shapes, one.ops[-1].shape)
            if self.kept(one) is None:
                todo.setdefault(one.fingerprint, one)
        new = list(todo.values())

        def keep(number: int, result: Result) -> None:
            self._keep(new[number], result)
            if progress:
                progress(number, result)

        job = partial(_train_text, self.images.name, self.recipe, self.seed, False)
        run_side_by_side(job, [one.text() for one in new], self.workers, keep)
        return [self._known[one.fingerprint] for one in architectures]

    def _keep(self, architecture: Architecture, result: Result) -> None:
        self.trained += 1
        self._known[architecture.fingerprint] = result
        record = {"name": architecture.name, "data": self.images.name, "seed": self.seed, **asdict(result)}
        write_file(self.path(architecture), (json.dumps(record) + "\n").encode(), make_folders=True)

    def test_accuracy(self, architecture: Architecture) -> float:
        """Accuracy on the test split, 0 to 1: of what a search has ended with. The network is trained again, once.

        Raises:
            InputError: an architecture for other images, or one whose training fails.
        """
        (result,) = self.results([architecture])
        if result.valid and result.test_accuracy is None:
            again = _train_text(self.images.name, self.recipe, self.seed, True, architecture.text())
            self._keep(architecture, replace(result, test_accuracy=again.test_accuracy))
            result = self._known[architecture.fingerprint]
        if result.test_accuracy is None:
            raise InputError(f"architecture {architecture.name!r} is not trained: {result.reason}")
        return result.test_accuracy


def _read(path: Path) -> Result | None:
    try:
        found = json.loads(path.read_text("utf-8"))
        parts = {name: found[name] for name in ("accuracy", "reason", "seconds", "test_accuracy")}
        return Result(losses=tuple(found["losses"]), accuracies=tuple(found["accuracies"]), **parts)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or damaged: it is trained again
        return None


def _train_text(data: str, recipe: Recipe, seed: int, test: bool, text: str) -> Result:
    """A job of its own: what a worker does."""
    return train(parse_architecture(text), load_images(data), recipe, seed, test=test)


@contextlib.contextmanager
def _one_thread_of_its_own(seed: int) -> Iterator[None]:
    """One thread, so that sums have one order, and torch's generator seeded; both as before afterwards."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def train(architecture: Architecture, images: Images, recipe: Recipe, seed: int = 0, *, test: bool = False) -> Result:
    """Train a network on the CPU, with one thread. The same arguments give the same result on the same machine.

    Args:
        test: whether to say the accuracy on the test split, too.
    """
    need("torch", what="training")
    needed = step_bytes(architecture, recipe.batch)
    if needed > recipe.limit_mib * 2**20:
        return Result(0.0, f"a step takes some {needed / 2**20:,.0f} MiB, it may take {recipe.limit_mib:,.0f}")
    started = time.process_time()
    losses: list[float] = []
    accuracies: list[float] = []
    try:
        with _one_thread_of_its_own(seed):
            reason, tested = _run(architecture, images, recipe, seed, test, losses, accuracies, started)
    except (Interrupted, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever torch raises: a network's fault is no end of a search
        reason, tested = f"training fails: {type(error).__name__}: {one_line(error)}", None
    seconds = time.process_time() - started
    accuracy = accuracies[-1] if accuracies and not reason else 0.0
    return Result(accuracy, reason, tuple(losses), tuple(accuracies), seconds, tested)


def _run(
    architecture: Architecture,
    images: Images,
    recipe: Recipe,
    seed: int,
    test: bool,
    losses: list[float],
    accuracies: list[float],
    started: float,
) -> tuple[str, float | None]:
    """(why it failed or "", test accuracy); fills the losses and validation accuracies of the epochs."""
    import torch
    from torch.nn import functional as F

    module = architecture.to_module(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    inputs, labels = torch.from_numpy(images.training.images), torch.from_numpy(images.training.labels)
    steps = len(labels) // recipe.batch
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, recipe.epochs * steps, recipe.warmup))
    for epoch in range(recipe.epochs):
        module.train()
        order, total = torch.randperm(len(labels), generator=generator), 0.0
        for step in range(steps):
            at = order[step * recipe.batch : (step + 1) * recipe.batch]
            loss = F.cross_entropy(module(inputs[at]), labels[at])
            value = float(loss.detach())
            if not math.isfinite(value):
                return f"the loss is {value} in epoch {epoch + 1}", None
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            total += value
            if time.process_time() - started > recipe.limit_s:
                return f"takes more than {recipe.limit_s:g} s, in epoch {epoch + 1} of {recipe.epochs}", None
        losses.append(total / steps)
        accuracies.append(_accuracy(module, images.validation, recipe.batch))
    return "", _accuracy(module, images.test, recipe.batch) if test else None


def _rate(steps: int, warmup: float, step: int) -> float:
    """The learning rate's factor."""
    first = max(1, round(warmup * steps))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, steps - first)))


def _accuracy(module: torch.nn.Module, split: Split, batch: int) -> float:
    import torch

    module.eval()
    right = 0
    with torch.no_grad():
        for at in range(0, len(split.labels), batch):
            scores = module(torch.from_numpy(split.images[at : at + batch]))
            right += int((scores.argmax(-1).numpy() == split.labels[at : at + batch]).sum())
    return right / len(split.labels)
