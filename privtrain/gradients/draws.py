"""Random draws of a model that belong to its rows, so that a row takes them along."""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from privtrain.core.errors import UnsupportedError

WAY_OUT = (
    "Draw with torch's global generator and nothing else, as torch.rand(...) and nn.Dropout do, "
    "and never seed it in the model or the loss."
)
"""What a model's random numbers must come from."""

_FIRST = 0x5EED << 40
"""The seed of torch's generator at the first draw of a pass; that of draw k is k more."""

_MOST = 2**32
"""Draws of one pass at most."""

_UNTAGGED = {"random", "random_", "binomial", "_sample_dirichlet"}
"""Random operations that torch does not tag."""

_OVER_THE_LAST = {"multinomial", "_sample_dirichlet"}
"""Operations whose last dimension is one distribution, which cannot be cut."""

_NEVER_CUT = {"randperm"}
"""Operations whose numbers depend on one another."""


class HeldDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Holds what a model draws fixed, each row's own draws by the row's identity.

    Within it, each random operation of torch draws for each row from a generator that follows from
    the seed, the number of the operation in this pass and the row's identity; what belongs to no
    row follows from the seed and the number alone. A row then draws the same among other rows, with
    a row less and at another place, and the law of its draws is what it was. A recomputation by
    `torch.utils.checkpoint` draws again what its forward pass drew. The global generators of
    Python and numpy start from the same seed; all of them are put back behind it.

    Rows are counted by the first dimension, if its length is that of the batch or a multiple; else
    by the first dimension that is as long as the batch.

    Args:
        rows: Identity of each row of the batch, in order.
        seed: Other seeds, other draws.

    Raises:
        UnsupportedError: From within: where a model draws from a generator of its own, or seeds
            torch's.
    """

    def __init__(self, rows: Sequence[int], seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.seed = tuple(rows), seed
        self.by_row: dict[str, None] = {}
        """Operations that drew for each row."""
        self.for_batch: dict[str, None] = {}
        """Operations that drew for the batch as a whole."""
        self.elsewhere: object = None
        """The states of Python's and numpy's global generators, in the end those they end in."""
        self._begun: object = None
        self._most = _MOST
        self._held: list[Callable[[], None]] = []
        self._on_devices: dict[int, Tensor] = {}

    def __enter__(self) -> "HeldDraws":
        state, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()
        self._held = [
            lambda: torch.set_rng_state(state),
            lambda: np.random.set_state(of_numpy),
            lambda: random.setstate(of_python),
        ]
        self._most = _MOST
        torch.default_generator.manual_seed(_FIRST)
        # Mixed: the first numbers of small seeds are alike, and no coin below them would come up.
        mixed = int.from_bytes(hashlib.sha256(str(self.seed).encode()).digest()[:4], "little")
        np.random.seed(mixed)
        random.seed(mixed)
        self.elsewhere = self._begun = _elsewhere()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)  # type: ignore[no-untyped-call]
            if raised[0] is None:
                self._number("the last operation")
            self.elsewhere = _elsewhere()
        finally:
            for put_back in self._held:
                put_back()

    @property
    def used_elsewhere(self) -> bool:
        """Whether anything was drawn from numpy's or Python's global generator."""
        return bool(self.elsewhere != self._begun)

    @property
    def drew(self) -> bool:
        """Whether anything was drawn."""
        return bool(self.by_row or self.for_batch) or self.used_elsewhere

    def end_of_forward(self) -> None:
        """From here on only what was drawn already may be drawn again, as checkpoints do."""
        self._most = self._number("the last operation")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not _draws(func, args, kwargs):
            return func(*args, **kwargs)
        # Other modes that are on must not take the draws of single rows for draws of a batch.
        with _disable_current_modes():
            return self._drawn(func, list(args), kwargs)

    def _drawn(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        name = func.overloadpacket.__name__
        _check_generator(name, [*args, *kwargs.values()])
        number = self._number(name)
        if number >= self._most:
            raise UnsupportedError(
                f"The backward pass of this model draws random numbers ({name}), so that it is not "
                "that of the forward pass. Use torch.utils.checkpoint with "
                "preserve_rng_state=True, or a layer that draws in its forward pass alone."
            )
        with self._generator(_device(args, kwargs)) as generator:

            def draw(key: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
                generator.manual_seed(_mixed(self.seed, number, key))
                return func(*args, **kwargs)

            cut = _Cut.of(func, args, kwargs, len(self.rows))
            if cut is None:
                self.for_batch[name] = None
                drawn = draw(-1, args, kwargs)
            else:
                self.by_row[name] = None
                places = enumerate(self.rows)
                drawn = cut.joined([draw(row, *cut.part(place)) for place, row in places])
        torch.default_generator.manual_seed(_FIRST + number + 1)
        return drawn

    def _number(self, name: str) -> int:
        """How many draws came before, which the state of torch's generator tells.

        In the generator and not in a counter: whoever puts its state back, as a checkpoint does
        before it recomputes, draws the same again.
        """
        number = torch.default_generator.initial_seed() - _FIRST
        fresh = torch.Generator().manual_seed(_FIRST + number) if 0 <= number < _MOST else None
        same = fresh and torch.equal(fresh.get_state(), torch.default_generator.get_state())
        if not same:
            raise UnsupportedError(
                "The model or the loss seeds torch's global generator, or draws from it in a way "
                f"that cannot be held fixed for each row (seen at {name}). {WAY_OUT}"
            )
        return number

    @contextmanager
    def _generator(self, device: torch.device) -> Iterator[torch.Generator]:
        """The global generator of a device, which is put back."""
        if device.type != "cuda":
            yield torch.default_generator
            return
        generator = torch.cuda.default_generators[device.index or 0]
        state = generator.get_state()
        before = self._on_devices.setdefault(device.index or 0, state)
        if not torch.equal(state, before):
            raise UnsupportedError(
                f"The model or the loss seeds torch's generator of {device}. {WAY_OUT}"
            )
        try:
            yield generator
        finally:
            generator.set_state(state)


def _elsewhere() -> object:
    """The states of the global generators of numpy and of Python."""
    _, key, position, *_ = np.random.get_state(legacy=True)
    return np.asarray(key).tobytes(), position, random.getstate()


def _draws(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation draws random numbers."""
    tagged = torch.Tag.nondeterministic_seeded in func.tags
    if not tagged and func.overloadpacket.__name__ not in _UNTAGGED:
        return False
    given = _named(func, args) | kwargs
    # Attention and recurrent layers are tagged for the dropout that they may have.
    return all(given.get(name, 1) != 0 for name in ("dropout_p", "dropout"))


def _named(func: Any, args: Sequence[Any]) -> dict[str, Any]:
    names = [argument.name for argument in func._schema.arguments]
    return dict(zip(names, args, strict=False))


def _check_generator(name: str, values: Sequence[Any]) -> None:
    for value in values:
        own = isinstance(value, torch.Generator) and value is not torch.default_generator
        if own and value not in _global_generators():
            raise UnsupportedError(
                f"The operation {name} of the model or the loss draws from a generator of its own, "
                "which gives random numbers by place in the batch and cannot be held fixed for "
                f"each row. {WAY_OUT}"
            )


def _global_generators() -> tuple[torch.Generator, ...]:
    return tuple(torch.cuda.default_generators) if torch.cuda.is_available() else ()


def _device(args: Sequence[Any], kwargs: dict[str, Any]) -> torch.device:
    tensors = [value.device for value in args if isinstance(value, Tensor)]
    named = kwargs.get("device")
    return tensors[0] if tensors else torch.device("cpu") if named is None else torch.device(named)


def _mixed(*numbers: int) -> int:
    """A seed that follows from whole numbers (splitmix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state ^ (number % 2**64)) + 0x9E3779B97F4A7C15 & (2**64 - 1)
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        state = (state ^ state >> 27) * 0x94D049BB133111EB & (2**64 - 1)
        state ^= state >> 31
    return state >> 1


class _Cut:
    """How an operation is cut by rows."""

    def __init__(
        self,
        func: Any,
        given: dict[str, Any],
        keywords: dict[str, Any],
        shape: tuple[int, ...],
        dim: int,
        rows: int,
    ) -> None:
        self.func, self.given, self.keywords = func, given, keywords
        self.shape, self.dim, self.rows = shape, dim, rows
        self.size = shape[dim] // rows

    @classmethod
    def of(
        cls, func: Any, args: Sequence[Any], keywords: dict[str, Any], rows: int
    ) -> "_Cut | None":
        """How it is cut, or None if it belongs to the batch as a whole."""
        name = func.overloadpacket.__name__
        given = _named(func, args)
        tensors = [value for value in given.values() if isinstance(value, Tensor)]
        shape = tuple(tensors[0].shape if tensors else given.get("size", ()))
        dim = _dimension(shape, rows)
        last = name in _OVER_THE_LAST and dim == len(shape) - 1
        # Seeds that are returned for the backward pass are those of one draw.
        seeds = any(result.name.startswith("philox") for result in func._schema.returns)
        if dim is None or name in _NEVER_CUT or last or seeds:
            return None
        return cls(func, given, keywords, shape, dim, rows)

    def part(self, place: int) -> tuple[list[Any], dict[str, Any]]:
        """The arguments for one row; parts of tensors are views, so that they can be written to."""
        start = place * self.size
        keywords = {name: self._of(name, value, start) for name, value in self.keywords.items()}
        return [self._of(name, value, start) for name, value in self.given.items()], keywords

    def joined(self, parts: list[Any]) -> Any:
        """What the operation returns for all rows."""
        results = self.func._schema.returns
        if any(result.alias_info is not None for result in results):
            # It wrote into the tensor that it was given.
            into = self.keywords.get("out")
            return next(iter(self.given.values())) if into is None else into
        if len(results) > 1:
            return tuple(torch.cat(each, dim=self.dim) for each in zip(*parts, strict=True))
        return torch.cat(parts, dim=self.dim)

    def _of(self, name: str, value: Any, start: int) -> Any:
        if name == "size":
            return [*self.shape[: self.dim], self.size, *self.shape[self.dim + 1 :]]
        if not isinstance(value, Tensor):
            return value
        # As broadcasting aligns them: from the last dimension on.
        dim = self.dim - len(self.shape) + value.dim()
        if dim < 0 or value.shape[dim] != self.shape[self.dim]:
            return value
        return value.narrow(dim, start, self.size)


def _dimension(shape: tuple[int, ...], rows: int) -> int | None:
    """The dimension that counts the rows."""
    # A multiple: examples and time are one dimension. Further back: time comes first.
    if shape and shape[0] > 0 and shape[0] % rows == 0:
        return 0
    return shape.index(rows) if rows in shape else None
