"""The calls of layers in a forward pass, and whether they cover every use of a parameter."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from privtrain.core.errors import UnsupportedError
from privtrain.gradients.bookkeeping.layers import formula_of
from privtrain.gradients.bookkeeping.recurrent import Unrolled, forwarded_to

WatchedLayer = tuple[str, nn.Module, int]
"""A layer's name, the layer, and how many dimensions its inputs must have (0: any)."""


class NotCoveredError(Exception):
    """A parameter is used where no layer's formula covers it; never leaves this package."""


@dataclass
class LayerCall:
    """One call of a layer.

    Args:
        name: The layer's name in the model.
        layer: The layer.
        inputs: What it was given, detached, shape `(batch, ...)`.
        version: How often the inputs had been written to by then.
        edge: The place of its output in autograd's graph.
    """

    name: str
    layer: nn.Module
    inputs: Tensor
    version: int
    edge: Any


def watched_layers(model: nn.Module) -> list[WatchedLayer]:
    """Layers with a formula and with parameters of their own."""
    layers = []
    for name, layer in model.named_modules():
        formula = formula_of(layer)
        if formula is not None and any(p is not None for p in layer._parameters.values()):
            layers.append((name, layer, formula[1]))
    return layers


@contextmanager
def watch_calls(layers: list[WatchedLayer], recurrent: list[Unrolled]) -> Iterator[list[LayerCall]]:
    """Fills a list with the calls of layers while a model runs forward; takes its hooks off again.

    Args:
        layers: Whose calls are watched.
        recurrent: Their steps run as linear layers meanwhile, so that they are watched, too.
    """
    calls: list[LayerCall] = []
    hooks = []
    for name, layer, dimensions in layers:
        # Before a user's own hooks: one of them may replace the output, and the gradient of what
        # it returned is not the gradient of what the layer computed.
        watch = _watcher(calls, name, dimensions)
        hooks.append(layer.register_forward_hook(watch, prepend=True))
    try:
        with forwarded_to(recurrent):
            yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _watcher(calls: list[LayerCall], name: str, dimensions: int) -> Any:
    def watch(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        trained = any(p is not None and p.requires_grad for p in layer._parameters.values())
        if not trained or len(given) != 1 or not output.requires_grad:
            return
        inputs = given[0].detach()
        if dimensions in (0, inputs.dim()):
            # The edge now, not the output later: an in-place activation behind the layer moves
            # the output to another place of the graph.
            edge = get_gradient_edge(output)
            calls.append(LayerCall(name, layer, inputs, inputs._version, edge))

    return watch


def reached(losses: Tensor) -> tuple[set[Any], Counter[int]]:
    """Walks autograd's graph.

    Args:
        losses: Shape `(batch,)`.

    Returns:
        The nodes that the losses depend on, and how often each parameter is used, by `id`.
    """
    start = losses.grad_fn
    seen: set[Any] = {start}
    uses: Counter[int] = Counter()
    # A stack of its own: the graph of unrolled steps is deeper than Python's recursion allows.
    waiting = [start]
    while waiting:
        node = waiting.pop()
        for following, _ in getattr(node, "next_functions", ()):
            if following is None:
                continue
            if type(following).__name__ == "AccumulateGrad":
                uses[id(following.variable)] += 1
            elif following not in seen:
                seen.add(following)
                waiting.append(following)
    return seen, uses


def check_covered(
    trained: Iterable[tuple[str, nn.Parameter]], calls: list[LayerCall], uses: Counter[int]
) -> None:
    """Compares the uses of parameters that autograd knows with the calls of their layers.

    Raises:
        NotCoveredError: If a parameter is used elsewhere.
    """
    # A clipped sum of half of a gradient would have no bound: every use must have been seen.
    covered = Counter(
        id(parameter)
        for call in calls
        for parameter in map(call.layer._parameters.get, ("weight", "bias"))
        if parameter is not None and parameter.requires_grad
    )
    for name, parameter in trained:
        if uses[id(parameter)] != covered[id(parameter)]:
            raise NotCoveredError(f"{name!r} is used outside of the layers that have a formula")


def check_unchanged(calls: list[LayerCall]) -> None:
    """Checks that what layers were given is still there.

    Raises:
        UnsupportedError: If it was written to.
    """
    for call in calls:
        # Inputs are detached, so that autograd's own check of versions does not cover them.
        if call.inputs._version != call.version:
            raise UnsupportedError(
                f"What the layer {call.name!r} was given was written to afterwards, so that its "
                "gradient can no longer be found. Use no in-place operation there."
            )


def check_inputs(calls: list[LayerCall], rows: int) -> None:
    """Checks that what layers were given has one row for each example, and is still there.

    Raises:
        NotCoveredError: If its first dimension counts something else.
        UnsupportedError: If it was written to.
    """
    check_unchanged(calls)
    for call in calls:
        if not one_row_each(call, rows):
            raise NotCoveredError(
                f"the layer {call.name!r} was given inputs of shape {tuple(call.inputs.shape)} "
                f"for a batch of {rows}, whose first dimension does not count the examples"
            )


def one_row_each(call: LayerCall, rows: int) -> bool:
    """Whether a layer was given one row for each example."""
    return call.inputs.dim() > 0 and len(call.inputs) == rows
