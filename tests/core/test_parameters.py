import random

import numpy as np
import pytest
import torch
from torch import nn

from privtrain.core.errors import PrivacyError, UnsupportedError
from privtrain.core.parameters import (
    REAL,
    STEPPED,
    SUMMED,
    ModelPredictor,
    check_no_autocast,
    check_types,
    float_buffers,
    initial_model,
    load_state,
    load_vector,
    state_of,
    to_vector,
    trainable,
    trained_state_of,
    unwritten,
    wide_type,
)
from privtrain.core.seeding import Seeds
from privtrain.core.task import Task


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


@pytest.mark.parametrize("source", ["numpy", "python"])
def test_a_model_that_starts_from_other_global_generators_follows_from_the_stream(
    source: str,
) -> None:
    def model() -> nn.Module:
        layer = nn.Linear(2, 1)
        start = np.random.randn(2) if source == "numpy" else [random.random(), random.random()]
        with torch.no_grad():
            layer.weight.copy_(torch.tensor(start).float())
        return layer

    found = [
        to_vector(
            initial_model(Task(model=model), Seeds(seed)["initialisation", 0, ""]).parameters()
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0][:2], found[2][:2])


def test_a_model_as_one_vector_and_back() -> None:
    model = make()
    vector = to_vector(trainable(model))
    assert vector.shape == (3 * 4 + 4 + 4 + 4 + 4 * 2 + 2,)
    other = make()
    load_vector(trainable(other), vector)
    assert all(torch.equal(a, b) for a, b in zip(trainable(model), trainable(other), strict=True))
    assert torch.equal(to_vector(trainable(other)), vector)


def test_neither_direction_shares_memory() -> None:
    """With torch's own vector_to_parameters, local training would change the global model."""
    model = make()
    vector = to_vector(trainable(model))
    kept = vector.clone()
    load_vector(trainable(model), vector)
    with torch.no_grad():
        for parameter in trainable(model):
            parameter.add_(1.0)
    assert torch.equal(vector, kept)
    vector.zero_()
    assert bool(to_vector(trainable(model)).any())
    assert not to_vector(trainable(model)).requires_grad
    # A single tensor could be passed through without a copy.
    alone = nn.Parameter(torch.ones(2))
    to_vector([alone]).zero_()
    assert alone.tolist() == [1.0, 1.0]


def test_parameters_stay_leaves_with_their_optimizer() -> None:
    model = make()
    before = trainable(model)
    load_vector(before, torch.zeros(34))
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in before)
    assert all(a is b for a, b in zip(before, trainable(model), strict=True))


@pytest.mark.parametrize("size", [0, 33, 35])
def test_another_size_is_refused_and_writes_nothing(size: int) -> None:
    model = make()
    before = to_vector(trainable(model))
    assert before.numel() == 34
    with pytest.raises(ValueError, match=rf"vector\.numel\(\)={size} to be 34"):
        load_vector(trainable(model), torch.zeros(size))
    assert torch.equal(to_vector(trainable(model)), before)


def test_frozen_and_shared_parameters() -> None:
    model = make()
    model[0].requires_grad_(False)
    assert len(to_vector(trainable(model))) == 34 - 16
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert len(to_vector(trainable(tied))) == 16 + 4 + 4


def test_buffers_are_the_floating_point_ones() -> None:
    assert [tuple(buffer.shape) for buffer in float_buffers(make())] == [(4,), (4,)]
    assert to_vector([]).shape == (0,)
    load_vector([], torch.zeros(0))


def test_types_are_converted_to_the_models() -> None:
    model = nn.Linear(2, 1)
    load_vector(trainable(model), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert model.weight.dtype == torch.float32
    assert model.bias.item() == 3.0


def test_models_start_from_their_stream_alone() -> None:
    task = Task(model=make)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = to_vector(trainable(initial_model(task, Seeds(0)["initialisation", 0, ""])))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = to_vector(trainable(initial_model(task, Seeds(0)["initialisation", 0, ""])))
    other = to_vector(trainable(initial_model(task, Seeds(1)["initialisation", 0, ""])))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_predictors_answer_without_dropout_gradients_or_batch_statistics() -> None:
    model = make().train()
    predictor = ModelPredictor(model)
    inputs = torch.randn(5, 3)
    first = predictor(inputs)
    assert first.shape == (5, 2)
    assert not first.requires_grad
    assert torch.equal(first, predictor(inputs))
    assert torch.allclose(first[:1], predictor(inputs[:1]))
    assert int(model[1].num_batches_tracked) == 0  # type: ignore[arg-type] # a buffer
    assert ModelPredictor(nn.Identity())(inputs).equal(inputs)


class WithExtraState(nn.Module):
    """Refuses to be asked for its extra state, as one that was never run might."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.tied = self.inner
        self.inner.bias.requires_grad_(False)
        self.register_buffer("kept", torch.zeros(2))
        self.register_buffer("left", torch.zeros(2), persistent=False)

    def get_extra_state(self) -> None:
        raise AssertionError


def test_what_is_saved_are_parameters_and_buffers() -> None:
    model = make()
    assert state_of(model).keys() == model.state_dict().keys()
    own = WithExtraState()
    names = {"inner.weight", "inner.bias", "tied.weight", "tied.bias", "kept"}
    assert state_of(own).keys() == names
    assert trained_state_of(own).keys() == {"inner.weight", "tied.weight"}


def test_what_a_hook_adds_to_a_state_is_not_saved() -> None:
    model = make()

    def add(module: nn.Module, state: dict[str, object], prefix: str, metadata: object) -> None:
        state["rows"] = torch.ones(3)
        state["text"] = "rows"

    model._register_state_dict_hook(add)  # type: ignore[no-untyped-call]
    assert "rows" in model.state_dict()
    assert state_of(model).keys() == make().state_dict().keys()


def test_a_state_is_loaded_as_far_as_it_goes() -> None:
    model, other = make(), make()
    load_state(other, {**trained_state_of(model), "_extra_state": 3})  # type: ignore[dict-item]
    assert torch.equal(to_vector(trainable(other)), to_vector(trainable(model)))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_state(other, {"0.weight": torch.zeros(2, 2)})


def test_values_are_compared_at_powers_of_two() -> None:
    model = nn.Linear(3, 2)
    model.weight.data.fill_(torch.nan)
    parameters = trainable(model)
    found = []
    for step in range(18):
        try:
            with unwritten(model, parameters, step):
                pass
            with unwritten(model, parameters, step):
                model.bias.data.add_(1.0)
        except PrivacyError:
            found.append(step)
    assert found == [0, 1, 2, 4, 8, 16]
    with pytest.raises(PrivacyError), unwritten(model, parameters, 3), torch.no_grad():
        model.bias.add_(1.0)
    with pytest.raises(PrivacyError), unwritten(model, parameters, 3):
        model.extra = nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [
        (torch.float8_e5m2, ()),
        (torch.float16, (REAL, STEPPED)),
        (torch.bfloat16, (SUMMED, REAL, STEPPED)),
        (torch.float32, (SUMMED, REAL, STEPPED)),
        (torch.float64, (SUMMED, REAL, STEPPED)),
        (torch.complex64, (STEPPED,)),
        (torch.complex128, (STEPPED,)),
    ],
)
def test_types_are_refused_by_name(
    dtype: torch.dtype, allowed: tuple[tuple[torch.dtype, ...], ...]
) -> None:
    model = nn.Linear(2, 1)
    model.scale = nn.Parameter(torch.zeros(3).to(dtype))
    for types in (SUMMED, REAL, STEPPED):
        if types in allowed:
            check_types(model, types)
            continue
        name = str(dtype).removeprefix("torch.")
        with pytest.raises(UnsupportedError, match=f"'scale' is of type {name}, .*Use|Train"):
            check_types(model, types)
        model.scale.requires_grad_(False)
        check_types(model, types)
        model.scale.requires_grad_(True)


def test_sums_are_at_least_in_float32() -> None:
    bfloat16, single, double = (
        torch.zeros(1, dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)
    )
    assert wide_type([]) == wide_type([bfloat16]) == wide_type([bfloat16, single]) == torch.float32
    assert wide_type([bfloat16, double]) == wide_type([double, single]) == torch.float64


def test_autocast_is_refused_until_it_ends() -> None:
    check_no_autocast()
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(UnsupportedError, match="model's forward alone"):
            check_no_autocast()
        with torch.autocast("cpu", enabled=False):
            check_no_autocast()
    check_no_autocast()
