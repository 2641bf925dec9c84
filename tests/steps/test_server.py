"""The server's step against hand computations, in float64."""

import functools
import math

import pytest
import torch
from torch import nn

from privtrain.core.runtime import Reply, Seen
from privtrain.gradients.alone import ALONE
from privtrain.steps.server import Server, record_diagnostics
from tests.contracts.aggregation import a_run


def a_layer() -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0]]))
    return layer


def a_server(layer: nn.Linear, buffer: torch.Tensor | None = None, **options: object) -> Server:
    tensors = [layer.weight, *([] if buffer is None else [buffer])]
    return Server(tensors, [layer.weight], options.get("optimizer"))  # type: ignore[arg-type]


def test_models_replace_the_model_and_changes_are_added() -> None:
    layer = a_layer()
    server = a_server(layer)
    server.step(torch.tensor([3.0, 4.0], dtype=torch.float64), change=False)
    assert layer.weight.tolist() == [[3.0, 4.0]]
    server.step(torch.tensor([0.5, -0.5], dtype=torch.float64), change=True)
    assert layer.weight.tolist() == [[3.5, 3.5]]
    server.step(None, change=True)
    assert layer.weight.tolist() == [[3.5, 3.5]]


def test_the_vector_is_no_alias() -> None:
    layer = a_layer()
    vector = a_server(layer).vector()
    vector.zero_()
    assert layer.weight.tolist() == [[1.0, -2.0]]


def test_adam_on_the_server_equals_a_hand_computation() -> None:
    """Reddi et al. 2021, Algorithm 2 (arXiv:2003.00295), with torch's bias correction."""
    layer = a_layer()
    adam = functools.partial(torch.optim.Adam, lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    server = a_server(layer, optimizer=adam)
    changes = [[0.3, -0.1], [0.2, 0.4], [-0.5, 0.0]]
    x, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    for t, change in enumerate(changes, start=1):
        server.step(torch.tensor(change, dtype=torch.float64), change=True)
        for i, delta in enumerate(change):
            m[i] = 0.9 * m[i] + 0.1 * delta
            v[i] = 0.99 * v[i] + 0.01 * delta**2
            step = m[i] / (1 - 0.9**t)
            x[i] += 0.1 * step / (math.sqrt(v[i] / (1 - 0.99**t)) + 1e-3)
        assert layer.weight.tolist()[0] == pytest.approx(x, rel=1e-12)


def test_momentum_on_the_server_equals_a_hand_computation() -> None:
    layer = a_layer()
    server = a_server(layer, optimizer=functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9))
    x, m = 1.0, 0.0
    for change in (0.3, -0.2, 0.1):
        server.step(torch.tensor([change, 0.0], dtype=torch.float64), change=True)
        m = 0.9 * m + change
        x += 0.5 * m
        assert float(layer.weight.detach()[0, 0]) == pytest.approx(x, rel=1e-12)


def test_buffers_take_the_average_past_the_optimizer() -> None:
    layer, buffer = a_layer(), torch.tensor([10.0], dtype=torch.float64)
    server = a_server(layer, buffer, optimizer=functools.partial(torch.optim.SGD, lr=0.5))
    server.step(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64), change=True)
    assert layer.weight.tolist() == [[1.5, -1.5]]
    assert buffer.tolist() == [12.0]


def told(**numbers: float) -> Reply:
    return Reply({}, seen=Seen(numbers=numbers))


def test_what_parties_saw_is_averaged_over_those_that_tell() -> None:
    run = a_run()
    replies = {"a": told(loss=0.5, non_finite=2.0), "b": told(loss=1.5), "c": Reply({})}
    record_diagnostics(replies, 3, run)
    assert run.outcome.history.unprotected == {"loss": [(4, 1.0)], "non_finite": [(4, 2.0)]}


def test_notes_are_one_printable_line_and_said_once() -> None:
    run = a_run()
    run.outcome.notes.append("known")
    seen = Seen(notes=("known", "two\nlines\x1b[31m\udcff"))
    record_diagnostics({"a": Reply({}, seen=seen), "b": Reply({}, seen=seen)}, 0, run)
    assert run.outcome.notes == ["known", "twolines[31m"]


def test_only_what_an_engine_says_becomes_an_assumption() -> None:
    run = a_run()
    seen = Seen(assumptions=(f"{ALONE}: tried\x00", "parties are honest", f" {ALONE}"))
    record_diagnostics({"a": Reply({}, seen=seen), "b": Reply({}, seen=seen)}, 0, run)
    assert run.outcome.assumptions == [f"{ALONE}: tried"]
    assert run.outcome.notes == []
