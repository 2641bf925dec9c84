"""Recurrent layers as linear layers, whose gradients have formulas: the same function, by steps.

torch's own `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells hide their products from autograd's
graph. During a forward pass of the engine, linear layers that share their parameters take their
place; the model itself is not changed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError

Recurrent = nn.RNNBase | nn.RNNCellBase

State = tuple[Tensor, ...]
"""Hidden state, and of an LSTM the cell, each of shape `(layers x directions, batch, hidden)`."""

Step = Callable[[Tensor, Tensor, State], State]
"""What the inputs and the hidden state contribute, `(batch, gates)`, and the state to the next."""


def _lstm(given: Tensor, recurrent: Tensor, state: State) -> State:
    """The equations of `nn.LSTM`, in torch's order of gates: i, f, g, o."""
    input_gate, forget_gate, candidate, output_gate = (given + recurrent).chunk(4, dim=1)
    cell = forget_gate.sigmoid() * state[1] + input_gate.sigmoid() * candidate.tanh()
    return output_gate.sigmoid() * cell.tanh(), cell


def _gru(given: Tensor, recurrent: Tensor, state: State) -> State:
    """The equations of `nn.GRU`, in torch's order of gates: r, z, n."""
    reset, update, candidate = given.chunk(3, dim=1)
    recurrent_reset, recurrent_update, recurrent_candidate = recurrent.chunk(3, dim=1)
    # The reset gate stands before the recurrent bias is added up, as torch has it.
    new = (candidate + (reset + recurrent_reset).sigmoid() * recurrent_candidate).tanh()
    kept = (update + recurrent_update).sigmoid()
    return ((1 - kept) * new + kept * state[0],)


def _rnn(activation: Callable[[Tensor], Tensor]) -> Step:
    """The equation of `nn.RNN`."""
    return lambda given, recurrent, state: (activation(given + recurrent),)


_STEPS: Mapping[str, Step] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": _rnn(torch.tanh),
    "RNN_RELU": _rnn(torch.relu),
}
"""By what torch calls the mode of a layer."""


def can_be_unrolled(layer: nn.Module) -> bool:
    """Whether the steps of a layer are known here: no projection, no subclass."""
    if isinstance(layer, nn.RNNBase):
        return type(layer) in (nn.LSTM, nn.GRU, nn.RNN) and layer.proj_size == 0
    return type(layer) in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


class Unrolled:
    """The steps of one recurrent layer, or the step of one cell.

    Args:
        name: The layer's name in the model.
        layer: The layer.
    """

    def __init__(self, name: str, layer: Recurrent) -> None:
        self.layer = layer
        self._mode = layer.mode if isinstance(layer, nn.RNNBase) else _mode_of(layer)
        self._endings = list(_endings(layer))
        # On "meta": they hold no values of their own, `share` gives them those of the layer.
        self._linear = {
            f"{part}{ending}": nn.Linear(1, 1, bias=bool(layer.bias), device="meta")
            for ending in self._endings
            for part in ("ih", "hh")
        }
        self.linear_layers = [(f"{name}.{part}", linear) for part, linear in self._linear.items()]

    def share(self) -> None:
        """Gives the linear layers the parameters that the layer has now."""
        # Into `_parameters`: the same objects, so that a use here is a use of the layer's weight.
        for part, linear in self._linear.items():
            linear._parameters["weight"] = self.layer._parameters[f"weight_{part}"]
            if self.layer.bias:
                linear._parameters["bias"] = self.layer._parameters[f"bias_{part}"]

    def __call__(self, input: Any, hx: Any = None) -> Any:
        """What the layer returns for a batch; arguments are named as it names them.

        Raises:
            UnsupportedError: If sequences are packed, or there is no batch.
        """
        whole = isinstance(self.layer, nn.RNNBase)
        if not isinstance(input, Tensor) or input.dim() != (3 if whole else 2):
            padded = "(batch, time, features), padded to one length"
            shape = padded if whole else "(batch, features)"
            raise UnsupportedError(
                f"An nn.{type(self.layer).__name__} was given packed sequences, or a single row. "
                f"Give it inputs of shape {shape}."
            )
        self.share()
        # A state is a pair only where there is a cell beside it.
        pair = self._mode == "LSTM"
        state: State | None = hx if pair or hx is None else (hx,)
        if not isinstance(self.layer, nn.RNNBase):
            _, after = self._one_way("", input.unsqueeze(1), state, backwards=False)
            return after if pair else after[0]
        outputs, after = self._layers(self.layer, input, state)
        return outputs, after if pair else after[0]

    def _layers(
        self, layer: nn.RNNBase, inputs: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """Outputs of the last layer, and the last state of all layers and directions."""
        outputs = inputs if layer.batch_first else inputs.transpose(0, 1)
        ways, ends = 2 if layer.bidirectional else 1, list[State]()
        for number in range(layer.num_layers):
            if number > 0:
                # As torch does: between layers, never behind the last one.
                outputs = nn.functional.dropout(outputs, layer.dropout, layer.training)
            both = []
            for way in range(ways):
                place = number * ways + way
                start = None if state is None else tuple(part[place] for part in state)
                of_way, end = self._one_way(self._endings[place], outputs, start, way == 1)
                both.append(of_way)
                ends.append(end)
            outputs = both[0] if ways == 1 else torch.cat(both, dim=2)
        after = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))
        return outputs if layer.batch_first else outputs.transpose(0, 1), after

    def _one_way(
        self, ending: str, inputs: Tensor, state: State | None, backwards: bool
    ) -> tuple[Tensor, State]:
        recurrent, advance = self._linear[f"hh{ending}"], _STEPS[self._mode]
        if state is None:
            zeros = inputs.new_zeros(len(inputs), self.layer.hidden_size)
            state = (zeros, zeros) if self._mode == "LSTM" else (zeros,)
        # Inputs of all steps at once: one product over time instead of one for each step.
        steps = self._linear[f"ih{ending}"](inputs).unbind(dim=1)
        outputs = []
        for step in reversed(steps) if backwards else steps:
            state = advance(step, recurrent(state[0]), state)
            outputs.append(state[0])
        return torch.stack(outputs[::-1] if backwards else outputs, dim=1), state


def _mode_of(cell: nn.RNNCellBase) -> str:
    """What torch would call the mode of a layer of such cells."""
    kind = type(cell).__name__.removesuffix("Cell")
    return f"RNN_{cell.nonlinearity}".upper() if isinstance(cell, nn.RNNCell) else kind


def _endings(layer: Recurrent) -> Iterator[str]:
    """How the names of parameters end, in the order of layers and directions."""
    if not isinstance(layer, nn.RNNBase):
        yield ""
        return
    for number in range(layer.num_layers):
        yield f"_l{number}"
        if layer.bidirectional:
            yield f"_l{number}_reverse"


@contextmanager
def forwarded_to(unrolled: Iterable[Unrolled]) -> Iterator[None]:
    """Lets unrolled layers stand for the recurrent layers of a model."""
    replaced = list(unrolled)
    for each in replaced:
        # In the instance's dictionary, where it hides the method of the class until it goes again.
        each.layer.forward = each
    try:
        yield
    finally:
        for each in replaced:
            del each.layer.forward


def unrolled_layers(model: nn.Module) -> Iterator[Unrolled]:
    """The recurrent layers of a model that can be unrolled."""
    for name, layer in model.named_modules():
        if isinstance(layer, Recurrent) and can_be_unrolled(layer):
            yield Unrolled(name, layer)
