"""Bounds that a user states on what is computed on shares, and what each holder can check of them.

Nothing is sent or opened for a check: initial weights are public, final ones are opened anyway, and
everybody looks at own rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from privtrain.core.errors import DataError
from privtrain.core.nearest import nearest
from privtrain.core.task import SCALE_COLUMNS, Rows, widest_column
from privtrain.core.validate import check_positive
from privtrain.mpc.dense import Linear
from privtrain.mpc.layers import Node, evaluated, takes_pictures, translate
from privtrain.mpc.pictures import Conv2d
from privtrain.mpc.ranges import CHUNK
from privtrain.mpc.sharing import LARGEST

ByLayer = Mapping[str, float] | Sequence[Sequence[str | float]]
"""Name of a layer to a bound, or pairs of both, as a study file has them."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Magnitudes within which values on shares are stated to stay, in the units of the rows.

    From them follows what each operation of a step reaches in the worst case, before a row is
    shared; the first one that may overflow is named. They are claims: where one is false during
    training nobody sees it, and values may wrap around as if nothing had been stated.

    Args:
        rows: Of every input; above 0, below 4,096.
        weights: Of every trained weight and bias in every step; above 0, below 4,096.
        layers: Name of a layer to that of what it computes, before and after its bias. What follows
            from it is computed from the stated bound where that is smaller. Functions, such as
            `torch.relu`, have the name of the layer that calls them, the outermost one "model".
        gradients: Name of a layer to that of what it hands back: the gradient of a row's loss by
            each of its inputs.

    Raises:
        ValueError: If a bound is not above 0 and finite, or those of rows or weights are too large
            for fixed point.
    """

    rows: float
    weights: float
    layers: ByLayer = ()
    gradients: ByLayer = ()

    def __post_init__(self) -> None:
        for name in ("rows", "weights"):
            value = getattr(self, name)
            check_positive(**{name: value})
            if not value < LARGEST:
                raise ValueError(
                    f"Expected {name}={value!r} < {LARGEST:g}, which fixed point holds."
                )
        for name in ("layers", "gradients"):
            # Pairs: a frozen value must not hold what can be changed, and a file has no mapping.
            object.__setattr__(self, name, tuple(_pairs(name, getattr(self, name))))

    def of_layer(self, name: str) -> float:
        """The bound on what a layer computes; infinite where none is stated."""
        return dict(self.layers).get(name, inf)  # type: ignore[arg-type]  # pairs

    def of_gradient(self, name: str) -> float:
        """The bound on what a layer hands back; infinite where none is stated."""
        return dict(self.gradients).get(name, inf)  # type: ignore[arg-type]  # pairs

    def check_model(self, nodes: Sequence[Node]) -> None:
        """Refuses bounds that cannot be of a model.

        Args:
            nodes: The model, with its initial weights.

        Raises:
            ValueError: If it has no layer of such a name.
            DataError: If an initial weight exceeds the bound.
        """
        known = list(dict.fromkeys(node.name for node in nodes))
        for setting in ("layers", "gradients"):
            for name, _ in getattr(self, setting):
                if name not in known:
                    raise ValueError(
                        f"Expected {setting} of the bounds to name layers of the model; it has no "
                        f"{name!r}, but {', '.join(map(repr, known))}.{nearest(name, known)}"
                    )
        for name, weight in _trained(nodes):
            largest = _magnitude(weight)
            if largest > self.weights:
                raise DataError(
                    f"Initial weights of the layer {name!r} reach {largest:g}, beyond the stated "
                    f"weights={self.weights!r}. State a larger bound, or make the model with "
                    "smaller ones."
                )

    def check_rows(self, inputs: Tensor, party: str) -> None:
        """Refuses own rows that exceed the bound.

        Args:
            inputs: Shape `(rows, ...)`; finite.
            party: Who holds them.

        Raises:
            DataError: With the largest magnitude and the widest column.
        """
        largest = _magnitude(inputs)
        if largest > self.rows:
            raise DataError(
                f"The inputs of {party} reach {largest:g}, beyond the stated rows={self.rows!r}. "
                f"{widest_column(inputs)}. {SCALE_COLUMNS}, or state a larger bound."
            )

    def broken(self, model: nn.Module, rows: Rows) -> str:
        """Which bound own rows exceed under weights that are public; empty where none.

        Args:
            model: What can be trained on shares.
            rows: Own rows; what is said of them is unprotected.

        Returns:
            What exceeds which bound, as a part of a sentence. Gradients are not looked at.
        """
        nodes = translate(model)
        for name, weight in _trained(nodes):
            if (largest := _magnitude(weight)) > self.weights:
                return (
                    f"weights of the layer {name!r} reach {largest:g}, beyond the stated "
                    f"weights={self.weights!r}"
                )
        for name, values in _computed(nodes, rows.inputs):
            if (largest := _magnitude(values)) > self.of_layer(name):
                return (
                    f"the layer {name!r} computes {largest:g}, beyond the stated "
                    f"{self.of_layer(name)!r}"
                )
        return ""

    def check_layers(self, model: nn.Module, rows: Rows) -> None:
        """Refuses initial weights under which own rows exceed a bound.

        Raises:
            DataError: With the layer and both magnitudes.
        """
        if broken := self.broken(model, rows):
            raise DataError(
                f"Bounds are false already under the initial weights: {broken}. State larger "
                f"ones. {widest_column(rows.inputs)}."
            )


def _pairs(name: str, given: ByLayer) -> Iterator[tuple[str, float]]:
    pairs = list(given.items() if isinstance(given, Mapping) else given)
    for pair in pairs:
        if isinstance(pair, str) or len(pair) != 2 or not isinstance(pair[0], str):
            raise ValueError(
                f"Expected {name}={given!r} to give layers their bounds, such as "
                "{'head': 50.0}, or [['head', 50.0]] in a study file."
            )
        layer, bound = pair
        check_positive(**{f"{name}[{layer!r}]": bound})  # type: ignore[arg-type]  # is checked
        yield layer, bound  # type: ignore[misc]  # was checked


def _trained(nodes: Sequence[Node]) -> Iterator[tuple[str, Tensor]]:
    for node in nodes:
        if isinstance(node.layer, Linear | Conv2d):
            both = zip((node.layer.weight, node.layer.bias), node.layer.learned, strict=True)
            yield from (
                (node.name, weight) for weight, learned in both if learned and weight is not None
            )


@torch.no_grad()
def _computed(nodes: Sequence[Node], inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What layers compute of some rows at a time, before and after their biases."""
    pictures = takes_pictures(nodes)
    for chunk in torch.split(inputs.detach().cpu(), CHUNK):
        values = chunk.double()
        for node, taken, outputs in evaluated(nodes, values if pictures else values.flatten(1)):
            if isinstance(node.layer, Linear | Conv2d):
                yield node.name, node.layer.product(*taken)
            yield node.name, outputs


def _magnitude(values: Tensor) -> float:
    return float(values.detach().double().abs().max()) if values.numel() else 0.0
