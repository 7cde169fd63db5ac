"""Real values beside the fake tensors of a step, where they are known: for operators whose results depend on values.

A mask built from lengths, the lengths of a packed sequence, an index found by ``nonzero``: what they are made of is
small and given, so it is computed on the CPU along with the shapes. What comes from parameters or from inputs
without values (``meta``) has none, unless everything is computed (``everything=True``), which takes the memory and
the time of the real forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from graphopt_gym.graphs.aten import tensors_in

if TYPE_CHECKING:
    import torch

LIMIT = 2**22  # elements of a tensor whose value is kept, unless everything is computed
_VALUE = "_graphopt_value"

# Operators whose result's shape needs the values of these arguments only (position); others need all.
_DECIDED_BY = {
    "index": (1,),
    "masked_select": (1,),
    "_pack_padded_sequence": (1,),
    "repeat_interleave": (0,),
    "_ctc_loss": (1, 2, 3),
}


class NeedsValues(Exception):
    """A result depends on values of tensors that are not known: of the operator or function ``func``."""

    def __init__(self, func: Any, where: str = "") -> None:
        super().__init__(str(func))
        self.func, self.where = func, where


class Values:
    """The values that are known of the fake tensors of one step."""

    def __init__(self, everything: bool = False) -> None:
        self.everything = everything
        self.random: Any = None  # state of the generator of random values: the same in each capture
        self.stale: dict[int, Any] = {}  # storages of values that a write of unknown values has made wrong

    def of(self, fake: Any) -> torch.Tensor | None:
        from torch._subclasses.fake_tensor import FakeTensor

        if not isinstance(fake, FakeTensor):  # a tensor from outside has its own, and is not written to
            known = fake.device.type == "cpu" and (fake.numel() <= LIMIT or self.everything)
            return fake if known else None
        value = getattr(fake, _VALUE, None)
        if value is None or value.untyped_storage()._cdata in self.stale:
            return None
        return value

    def give(self, fake: torch.Tensor, real: torch.Tensor) -> None:
        """Take note of a value that is given from outside: real, and not too large."""
        from torch.utils._python_dispatch import _disable_current_modes

        if real.device.type == "meta" or (real.numel() > LIMIT and not self.everything):
            return
        try:
            with _disable_current_modes():
                setattr(fake, _VALUE, real.detach().to("cpu", copy=True))
        except (RuntimeError, NotImplementedError):  # a fake or sparse tensor of somebody's
            return

    def _real(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.Tensor):
            return self.of(value)
        if isinstance(value, list | tuple):
            return type(value)(self._real(item) for item in value)
        if isinstance(value, torch.device):
            return torch.device("cpu")
        return value

    def compute(self, func: Any, args: Any, kwargs: Any, real: Callable[[Any], Any] | None = None) -> Any:
        """The real result of a call, of whose tensors ``real`` gives the values: the known ones by default."""
        import torch
        from torch.utils._python_dispatch import _disable_current_modes

        real = real or self._real
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            generator, before = torch.default_generator, None
            if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):
                before = generator.get_state()
                generator.set_state(
                    self.random if self.random is not None else torch.Generator().manual_seed(0).get_state()
                )
            try:
                return func(*real(tuple(args)), **{key: real(value) for key, value in kwargs.items()})
            finally:
                if before is not None:
                    self.random = generator.get_state()
                    generator.set_state(before)

    def read(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What a method of the tensor gives that makes it Python's or NumPy's.

        Raises:
            NeedsValues: the value is not known.
        """
        if self.of(args[0]) is None:
            raise NeedsValues(f"Tensor.{func.__name__}")
        return self.compute(func, args, kwargs)

    def known(self, *arguments: Any) -> bool:
        return all(self.of(tensor) is not None for value in arguments for tensor in tensors_in(value))

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any, written: list[torch.Tensor], skip: bool) -> None:
        """After a call with fake tensors: the value of its result too, where those of its arguments are known."""
        import torch
        from torch._subclasses.fake_tensor import FakeTensor

        skip = skip or not all(isinstance(tensor, FakeTensor) for tensor in written)
        results = list(tensors_in(out))
        small = self.everything or all(t.numel() <= LIMIT for t in results)
        if torch.Tag.nondeterministic_seeded in getattr(func, "tags", ()):  # a number that decides, and no mask
            small = self.everything or all(t.numel() == 1 for t in results)
        if skip or not small or not self.known(args, *kwargs.values()):
            for tensor in written:
                if (value := getattr(tensor, _VALUE, None)) is not None:
                    storage = value.untyped_storage()
                    self.stale[storage._cdata] = storage
            return
        try:
            real = self.compute(func, args, kwargs)
        except (RuntimeError, NotImplementedError):  # no kernel for a CPU
            return
        self.pair(out, real)

    def pair(self, fake: Any, real: Any) -> None:
        """Gives fake results their values, in the layout of the fake ones: the target's kernel may choose another."""
        import torch
        from torch.utils._python_dispatch import _disable_current_modes

        for made, value in zip(tensors_in(fake), tensors_in(real)):
            if made.shape == value.shape and made.dtype == value.dtype:
                if made.stride() != value.stride() and 0 not in made.stride():
                    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
                        value = torch.empty_strided(made.shape, made.stride(), dtype=made.dtype).copy_(value)
                setattr(made, _VALUE, value)

    def decide(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The real result of a call whose shape or number depends on values; None where they are not known.

        Where only the values of some arguments matter, those of the others are taken as zeros, and the result has the
        right shapes alone.
        """
        if self.known(args, *kwargs.values()):
            return self.compute(func, args, kwargs)
        deciding = _DECIDED_BY.get(func._schema.name.split("::")[-1])
        if deciding is None or not self.known(*(args[i] for i in deciding)):
            return None
        return self.shapes(func, args, kwargs)

    def shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A real result of a call for its shapes: zeros stand for values that are not known.

        Raises:
            NotImplementedError: it has no kernel for a CPU, or is too large.
        """
        import torch

        if sum(t.numel() for value in (*args, *kwargs.values()) for t in tensors_in(value)) > 64 * LIMIT:
            raise NotImplementedError(f"{func} on tensors of this size")

        def stand_in(value: Any) -> Any:
            if isinstance(value, torch.Tensor) and self.of(value) is None:
                return torch.zeros((), dtype=value.dtype).expand(value.shape)
            if isinstance(value, list | tuple):
                return type(value)(stand_in(item) for item in value)
            return self._real(value)

        result = self.compute(func, args, kwargs, stand_in)
        if not self.known(args, *kwargs.values()):
            for tensor in tensors_in(result):
                tensor._graphopt_unknown = True  # type: ignore[attr-defined]
        return result
