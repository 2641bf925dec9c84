"""`nn.LSTM` as linear layers, whose gradients have formulas: the same function, step by step.

torch's own LSTM hides its steps from autograd. During a forward pass of the engine, linear layers
that share its parameters take its place; the model itself is not changed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from privtrain.core.errors import UnsupportedError

State = tuple[Tensor, Tensor]
"""Hidden state and cell, each of shape `(layers x directions, batch, hidden)`."""


def can_be_unrolled(layer: nn.Module) -> TypeGuard[nn.LSTM]:
    """Whether a layer is an LSTM whose steps are known here: no projection, no subclass."""
    return type(layer) is nn.LSTM and layer.proj_size == 0


class Unrolled:
    """The steps of one LSTM.

    Args:
        name: The layer's name in the model.
        layer: The layer.
    """

    def __init__(self, name: str, layer: nn.LSTM) -> None:
        self.layer = layer
        self._endings = [
            f"l{number}{side}"
            for number in range(layer.num_layers)
            for side in (("", "_reverse") if layer.bidirectional else ("",))
        ]
        # On "meta": they hold no values of their own, `share` gives them those of the LSTM.
        self._linear = {
            f"{part}_{ending}": nn.Linear(1, 1, bias=layer.bias, device="meta")
            for ending in self._endings
            for part in ("ih", "hh")
        }
        self.linear_layers = [(f"{name}.{part}", linear) for part, linear in self._linear.items()]

    def share(self) -> None:
        """Gives the linear layers the parameters that the LSTM has now."""
        # Into `_parameters`: the same objects, so that a use here is a use of the LSTM's weight.
        for part, linear in self._linear.items():
            linear._parameters["weight"] = self.layer._parameters[f"weight_{part}"]
            if self.layer.bias:
                linear._parameters["bias"] = self.layer._parameters[f"bias_{part}"]

    def __call__(self, input: Any, hx: State | None = None) -> tuple[Tensor, State]:
        """What the LSTM returns for a batch of sequences; arguments are named as it names them.

        Raises:
            UnsupportedError: If the sequences are packed, or there is no batch.
        """
        inputs, state = input, hx
        if not isinstance(inputs, Tensor) or inputs.dim() != 3:
            raise UnsupportedError(
                "An nn.LSTM was given packed sequences, or a single one. Give it inputs of shape "
                "(batch, time, features), padded to one length."
            )
        self.share()
        outputs = inputs if self.layer.batch_first else inputs.transpose(0, 1)
        ways, ends = 2 if self.layer.bidirectional else 1, list[State]()
        for number in range(self.layer.num_layers):
            if number > 0:
                # As torch does: between layers, never behind the last one.
                outputs = nn.functional.dropout(outputs, self.layer.dropout, self.layer.training)
            both = []
            for way in range(ways):
                place = number * ways + way
                start = None if state is None else (state[0][place], state[1][place])
                of_way, end = self._one_way(self._endings[place], outputs, start, way == 1)
                both.append(of_way)
                ends.append(end)
            outputs = both[0] if ways == 1 else torch.cat(both, dim=2)
        after = torch.stack([end[0] for end in ends]), torch.stack([end[1] for end in ends])
        return outputs if self.layer.batch_first else outputs.transpose(0, 1), after

    def _one_way(
        self, ending: str, inputs: Tensor, state: State | None, backwards: bool
    ) -> tuple[Tensor, State]:
        recurrent = self._linear[f"hh_{ending}"]
        if state is None:
            zeros = inputs.new_zeros(len(inputs), self.layer.hidden_size)
            state = (zeros, zeros)
        hidden, cell = state
        # Inputs of all steps at once: one product over time instead of one for each step.
        steps = self._linear[f"ih_{ending}"](inputs).unbind(dim=1)
        outputs = []
        for step in reversed(steps) if backwards else steps:
            gates = step + recurrent(hidden)
            # torch's order of gates, and its equations of `nn.LSTM`: i, f, g, o.
            input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=1)
            cell = forget_gate.sigmoid() * cell + input_gate.sigmoid() * candidate.tanh()
            hidden = output_gate.sigmoid() * cell.tanh()
            outputs.append(hidden)
        return torch.stack(outputs[::-1] if backwards else outputs, dim=1), (hidden, cell)


@contextmanager
def forwarded_to(lstms: Iterable[Unrolled]) -> Iterator[None]:
    """Lets unrolled layers stand for the LSTMs of a model."""
    replaced = list(lstms)
    for lstm in replaced:
        # In the instance's dictionary, where it hides the method of the class until it goes again.
        lstm.layer.forward = lstm  # type: ignore[assignment]
    try:
        yield
    finally:
        for lstm in replaced:
            del lstm.layer.forward


def unrolled_lstms(model: nn.Module) -> Iterator[Unrolled]:
    """The LSTMs of a model that can be unrolled."""
    for name, layer in model.named_modules():
        if can_be_unrolled(layer):
            yield Unrolled(name, layer)
