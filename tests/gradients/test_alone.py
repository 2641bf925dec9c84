"""Rows that influence one another are found, behind `detach` too; sound models pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from privtrain.core.errors import UnsupportedError
from privtrain.core.task import Loss, Rows, cross_entropy
from privtrain.gradients.alone import RowTrial
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.gradients import GradientEngine
from privtrain.gradients.opacus import Opacus
from privtrain.steps.private import public_trial
from tests.gradients.loops import cnn, group_norm, layer_norm, mlp, rows_for
from tests.gradients.sociable import BETWEEN, CLASSES, HIDDEN, IN, SOCIABLE, Hidden, Own, plain

ROWS = 64


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def batch(count: int = ROWS, shape: tuple[int, ...] = (IN,)) -> Rows:
    """One row is 50 times as large as the others."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, *shape, generator=generator)
    inputs[0] *= 50
    return Rows(inputs, torch.randint(CLASSES, (count,), generator=generator))


def book_keeping(model: nn.Module, loss: Loss) -> GradientEngine:
    return BookKeeping().engine(model, loss)


def by_torch_func(model: nn.Module, loss: Loss) -> GradientEngine:
    return BookKeeping().engine(Own(model), loss)


def opacus(model: nn.Module, loss: Loss) -> GradientEngine:
    return Opacus().engine(model, loss)


ENGINES = [
    book_keeping,
    pytest.param(by_torch_func, marks=pytest.mark.slow),
    pytest.param(opacus, marks=pytest.mark.slow),
]
REFUSED = "depends on other examples|keeps something of earlier|global generator"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", SOCIABLE)
def test_rows_that_influence_one_another_are_refused(name: str, engine: Any) -> None:
    make, loss = SOCIABLE[name]
    with pytest.raises(UnsupportedError, match=REFUSED) as refused:
        engine(made(make), loss).clipped_sum(batch(), 1.0)
    assert "unprotected: this was decided on private rows" in str(refused.value)


@pytest.mark.parametrize("name", SOCIABLE)
def test_they_are_refused_on_public_rows_without_targets(name: str) -> None:
    make, loss = SOCIABLE[name]
    public = Rows(batch().inputs, torch.zeros(ROWS, dtype=torch.int64))
    with pytest.raises(UnsupportedError, match=REFUSED) as refused:
        book_keeping(made(make), loss).try_on(public)
    assert "unprotected" not in str(refused.value)


@pytest.mark.parametrize("count", [4, 16, 257])
@pytest.mark.parametrize("name", ["dynamic quantisation", "detached statistics", "the largest"])
def test_they_are_refused_in_batches_of_any_size(name: str, count: int) -> None:
    make, loss = SOCIABLE[name]
    with pytest.raises(UnsupportedError, match=REFUSED):
        book_keeping(made(make), loss).clipped_sum(batch(count), 1.0)


class Tokens(nn.Module):
    """Tokens that are counted over the batch before they are looked up."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.alone, self.table, self.head = alone, nn.Embedding(99, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        common = torch.zeros_like(x) if self.alone else (x == x.flatten().mode().values)
        out: Tensor = self.head(self.table(x + 5 * common).mean(dim=1))
        return out


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_that_are_mixed_before_an_embedding_are_refused(engine: Any) -> None:
    targets = batch().labels
    tokens = torch.randint(90, (ROWS, 7), generator=torch.Generator().manual_seed(0))
    engine(made(lambda: Tokens(True)), cross_entropy).clipped_sum(Rows(tokens, targets), 1.0)
    with pytest.raises(UnsupportedError, match=REFUSED):
        engine(made(lambda: Tokens(False)), cross_entropy).clipped_sum(Rows(tokens, targets), 1.0)


def test_what_one_row_moves_where_nothing_is_tried() -> None:
    """The refusals have a reason: without them one row moves a sum of bound 1 by far more."""
    rows = batch(256)
    engine: Any = book_keeping(made(lambda: Hidden(BETWEEN["dynamic quantisation"])), cross_entropy)
    engine._alone.done = engine._tried = True
    without = rows.take(torch.arange(1, len(rows)))
    moved = engine.clipped_sum(rows, 1.0).value - engine.clipped_sum(without, 1.0).value
    assert float(moved.norm()) > 5


class Depth(nn.Module):
    """Stochastic depth: a coin for each row, or one for the batch."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.each, self.body, self.head = each, nn.Linear(IN, IN), nn.Linear(IN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        coin = torch.rand(len(x) if self.each else 1, 1, device=x.device) < 0.5
        out: Tensor = self.head(x + coin * torch.relu(self.body(x)))
        return out


class Recomputed(nn.Module):
    """Computes its hidden layer again in the backward pass."""

    def __init__(self, keep: bool = True) -> None:
        super().__init__()
        self.body, self.head, self.keep = nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, CLASSES), keep

    def forward(self, x: Tensor) -> Tensor:
        hidden = checkpoint(
            lambda h: functional.dropout(torch.tanh(h)).exp(),
            self.body(x),
            use_reentrant=False,
            preserve_rng_state=self.keep,
        )
        out: Tensor = self.head(hidden)
        return out


class Heads(nn.Module):
    """Attention with dropout over eight tokens, its projections linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = nn.Linear(8, 24), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows, time, width = x.shape
        three = self.mix(x).view(rows, time, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*three, dropout_p=0.2)
        out: Tensor = self.head(mixed.transpose(1, 2).reshape(rows, time, width).mean(dim=1))
        return out


class Sequences(nn.Module):
    """Two layers of an LSTM with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x)[0][:, -1])
        return out


class Unused(nn.Module):
    """A branch that is not taken: its parameter is neither reached nor used."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rest = nn.Linear(IN, CLASSES), nn.Linear(IN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def noise(h: Tensor) -> Tensor:
    return h + 0.1 * torch.randn_like(h)


def noisy_weight(h: Tensor) -> Tensor:
    """As many rows of a weight as rows of the batch, and noise on them."""
    return h @ (torch.eye(HIDDEN).repeat(2, 1).to(h) + 0.1 * torch.randn(ROWS, HIDDEN).to(h))[:32]


def per_row_quantisation(h: Tensor) -> Tensor:
    scale = h.detach().abs().amax(dim=1, keepdim=True) / 7 + 1e-9
    return h + ((h / scale).round() * scale - h).detach()


SOUND: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "dropout": lambda: Hidden(functional.dropout),
    "alpha dropout": lambda: Hidden(nn.AlphaDropout(0.2)),
    "noise": lambda: Hidden(noise),
    "rrelu": lambda: Hidden(nn.RReLU()),
    "gumbel": lambda: Hidden(lambda h: functional.gumbel_softmax(h, dim=1)),
    "noise on a weight": lambda: Hidden(noisy_weight),
    "quantised row by row": lambda: Hidden(per_row_quantisation),
    "float32 inside": lambda: Hidden(lambda h: (h.float() @ torch.ones(32, 32)).to(h.dtype)),
    "a coin for each row": lambda: Depth(True),
    "a coin for the batch": lambda: Depth(False),
    "unused": Unused,
    "layer norm": lambda: nn.Sequential(
        nn.Linear(IN, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(), nn.Linear(HIDDEN, CLASSES)
    ),
}

SHAPED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.3), nn.Flatten()),
            nn.Linear(72, CLASSES),
        ),
        (1, 8, 8),
    ),
    "groups": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten()),
            nn.Linear(288, CLASSES),
        ),
        (1, 8, 8),
    ),
    "attention": (Heads, (8, 8)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", [*SOUND, *SHAPED])
def test_sound_models_pass(name: str, engine: Any) -> None:
    if name == "rrelu" and engine is by_torch_func:
        pytest.skip("torch.func has no rrelu")
    make, shape = SHAPED.get(name) or (SOUND[name], (IN,))
    prepared = engine(made(make), cross_entropy)
    assert prepared.assumptions == ("rows do not influence one another: assumed, not tried",)
    for rows in (batch(shape=shape), batch(31, shape)):
        assert bool(prepared.clipped_sum(rows, 1.0).value.isfinite().all())
    (said,) = prepared.assumptions
    assert "tried on the rows of one batch, not proved (unprotected" in said
    assert str(ROWS) not in said


@pytest.mark.parametrize("make", [Recomputed, Sequences])
@pytest.mark.parametrize("count", [8, ROWS])
def test_what_one_engine_takes_passes_it(make: Callable[[], nn.Module], count: int) -> None:
    shape = (8, 8) if make is Sequences else (IN,)
    engine = book_keeping(made(make), cross_entropy)
    engine.clipped_sum(batch(count, shape), 1.0)
    assert engine.notes == ()
    assert "tried on" in engine.assumptions[0]


@pytest.mark.parametrize("make", [mlp, cnn, group_norm, layer_norm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_rounding_refuses_nothing(make: Callable[[], nn.Module], dtype: torch.dtype) -> None:
    rows = rows_for(make, 300)
    trial = RowTrial(made(make).to(dtype), cross_entropy)
    trial.on(Rows(rows.inputs.to(dtype), rows.labels), public=True)
    assert trial.assumption == (
        "rows do not influence one another: tried on 300 public rows, not proved"
    )


def test_a_trial_leaves_the_model_and_the_generators_as_they_were() -> None:
    model = made(lambda: Hidden(functional.dropout))
    parameters = list(model.parameters())
    values = [parameter.detach().clone() for parameter in parameters]
    places = [parameter.data_ptr() for parameter in parameters]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    RowTrial(model, cross_entropy).on(batch(), public=False)
    assert torch.equal(torch.get_rng_state(), before)
    after = list(model.parameters())
    assert all(one is other for one, other in zip(parameters, after, strict=True))
    assert all(map(torch.equal, values, after))
    assert places == [parameter.data_ptr() for parameter in after]
    assert all(parameter.grad is None for parameter in after)


def test_it_is_tried_once() -> None:
    calls = []

    class Counting(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    engine = book_keeping(made(lambda: Counting(torch.relu)), cross_entropy)
    engine.try_on(Rows(batch().inputs, torch.zeros(ROWS, dtype=torch.int64)))
    assert max(calls) == ROWS, "at full size"
    assert "tried on 64 public rows" in engine.assumptions[0]
    calls.clear()
    engine.clipped_sum(batch(), 1.0)
    engine.clipped_sum(batch(), 1.0)
    assert calls == [ROWS, ROWS]


def test_batches_that_cannot_tell_leave_it_to_the_next_one() -> None:
    engine = book_keeping(made(plain), cross_entropy)
    engine.clipped_sum(batch(1), 1.0)
    engine.clipped_sum(batch(2), 1.0)
    spoilt = batch()
    spoilt.inputs[3] = torch.inf
    engine.clipped_sum(spoilt, 1.0)
    assert engine.assumptions == ("rows do not influence one another: assumed, not tried",)
    engine.clipped_sum(batch(), 1.0)
    assert "tried on" in engine.assumptions[0]


def test_a_micro_batch_is_tried_as_the_model_sees_it() -> None:
    seen = []

    class Seen(Hidden):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    engine = BookKeeping(micro_batch=20).engine(made(lambda: Seen(torch.relu)), cross_entropy)
    engine.clipped_sum(batch(), 1.0)
    assert max(seen) == 20


def texts(share: float, *, in_front: bool = False, seed: int = 0) -> Rows:
    """Texts of at most 12 words, 0 for none, a share of them of 12."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(2, 12, (16,), generator=generator)
    length[torch.rand(16, generator=generator) < share] = 12
    words = torch.randint(1, 30, (16, 12), generator=generator) * (
        torch.arange(12) < length[:, None]
    )
    targets = torch.randint(2, (16,), generator=generator)
    return Rows(words.flip(1) if in_front else words, targets)


class Cut(nn.Module):
    """Texts that are cut to the longest one, with a mean over words or over all that is left."""

    def __init__(self, *, of_words: bool, in_front: bool = False) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(30, 8), nn.Linear(8, 2)
        self.of_words, self.in_front = of_words, in_front

    def forward(self, x: Tensor) -> Tensor:
        longest = int((x != 0).sum(dim=1).max())
        x = x[:, -longest:] if self.in_front else x[:, :longest]
        mask = (x != 0).unsqueeze(2) if self.of_words else torch.ones_like(x).unsqueeze(2)
        out: Tensor = self.head(
            (self.embedding(x) * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        )
        return out


class Steps(nn.Module):
    """Hidden values are rounded to steps of a power of two, by the largest of the batch or row."""

    def __init__(self, *, of_the_row: bool) -> None:
        super().__init__()
        self.body, self.head, self.of_the_row = nn.Linear(IN, 24), nn.Linear(24, 2), of_the_row

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.body(x))
        size = hidden.detach().abs()
        largest = size.amax(dim=1, keepdim=True) if self.of_the_row else size.max()
        step = 2 ** torch.ceil(torch.log2(largest + 1e-9)) / 4
        out: Tensor = self.head(hidden + ((hidden / step).round() * step - hidden).detach())
        return out


def in_bits(seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (ROWS, IN), generator=generator).float()
    return Rows(bits, torch.randint(2, (ROWS,), generator=generator))


@pytest.mark.parametrize("in_front", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("engine", [book_keeping, opacus])
def test_a_length_that_many_texts_share_is_found(engine: Any, share: float, in_front: bool) -> None:
    rows = texts(share, in_front=in_front)

    def prepared(of_words: bool) -> GradientEngine:
        model = made(lambda: Cut(of_words=of_words, in_front=in_front))
        return engine(model, cross_entropy)

    with pytest.raises(UnsupportedError, match="depends on other examples"):
        prepared(False).clipped_sum(rows, 1.0)
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        prepared(False).try_on(public_trial(Rows(rows.inputs), rows, 16))
    sound = prepared(True)
    sound.clipped_sum(rows, 1.0)
    assert "tried on" in sound.assumptions[0]


@pytest.mark.parametrize("seed", range(3))
def test_a_step_that_many_rows_share_is_found(seed: int) -> None:
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        book_keeping(made(lambda: Steps(of_the_row=False), seed), cross_entropy).clipped_sum(
            in_bits(seed), 1.0
        )
    sound = book_keeping(made(lambda: Steps(of_the_row=True), seed), cross_entropy)
    sound.clipped_sum(in_bits(seed), 1.0)
    assert "tried on" in sound.assumptions[0]


def test_a_bound_far_beyond_one_batch_is_found() -> None:
    def bounded(hidden: Tensor) -> Tensor:
        return hidden * (2000 / hidden.detach().norm(dim=1).max()).clamp(max=1)

    generator = torch.Generator().manual_seed(0)
    rows = Rows(torch.randn(ROWS, IN, generator=generator), batch().labels)
    with pytest.raises(UnsupportedError, match="depends on other examples"):
        book_keeping(made(lambda: Hidden(bounded)), cross_entropy).clipped_sum(rows, 1.0)


class Scale(torch.autograd.Function):
    """Multiplies by a weight that it is given by a closure, or by a tensor it does not mark."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Callable[[], Tensor]) -> Tensor:
        ctx.save_for_backward(weight().detach())
        return x * weight()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.saved_tensors[0], None


class Hiding(nn.Module):
    """A parameter that a function hides from autograd."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.body, self.head, self.how = nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, CLASSES), how
        self.hidden = nn.Parameter(torch.ones(HIDDEN))
        self.view = self.hidden.detach()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x)
        if self.how == "function":
            hidden = Scale.apply(hidden, lambda: self.hidden)
        elif self.how == "data":
            hidden = hidden * self.hidden.data
        elif self.how == "view":
            hidden = hidden * self.view
        out: Tensor = self.head(hidden)
        return out


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["function", "data", "view"])
def test_a_parameter_that_is_hidden_from_autograd_is_named(how: str, engine: Any) -> None:
    model = made(lambda: Hiding(how))
    values = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(UnsupportedError, match=r"depend on '(body\.)?hidden', which autograd"):
        engine(model, cross_entropy).clipped_sum(batch(), 1.0)
    assert all(map(torch.equal, values, model.parameters()))


@pytest.mark.parametrize("engine", [book_keeping, opacus])
def test_a_hidden_parameter_that_is_frozen_or_unused_is_none(engine: Any) -> None:
    frozen = made(lambda: Hiding("function"))
    frozen.hidden.requires_grad_(False)
    for model in (frozen, made(lambda: Hiding("not at all"))):
        engine(model, cross_entropy).clipped_sum(batch(), 1.0)


def test_a_recomputation_that_draws_anew_is_refused() -> None:
    engine = book_keeping(made(lambda: Recomputed(keep=False)), cross_entropy)
    with pytest.raises(UnsupportedError, match="preserve_rng_state=True"):
        engine.clipped_sum(batch(), 1.0)


def test_an_operation_that_draws_for_the_batch_is_named() -> None:
    engine = book_keeping(made(lambda: Hidden(BETWEEN["another row"])), cross_entropy)
    with pytest.raises(UnsupportedError, match="randperm drew for the batch as a whole"):
        engine.clipped_sum(batch(), 1.0)


def test_a_coin_of_numpy_that_seldom_falls_is_met() -> None:
    """The first numbers of numpy's small seeds are all above 0.4."""

    def between(hidden: Tensor) -> Tensor:
        if np.random.rand() < 0.35:
            hidden = (hidden - hidden.detach().mean(dim=0)) / hidden.detach().std(dim=0)
        return hidden

    with pytest.raises(UnsupportedError, match=REFUSED):
        book_keeping(made(lambda: Hidden(between)), cross_entropy).clipped_sum(batch(), 1.0)


def test_a_layer_that_a_coin_leaves_out_is_not_hidden() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(IN, IN) for _ in range(3))
            self.head = nn.Linear(IN, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if float(torch.rand(())) > 0.4:
                    x = x + layer(x)
            out: Tensor = self.head(x)
            return out

    engine = book_keeping(made(Left), cross_entropy)
    engine.clipped_sum(batch(), 1.0)
    assert "tried on" in engine.assumptions[0]


def test_a_gradient_that_rows_of_zeros_do_not_have_is_no_influence() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(IN, 8, bias=False), nn.Linear(8, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x)
            out: Tensor = self.head(hidden / (hidden.square().sum(1, True).sqrt() + 1e-6))
            return out

    engine = book_keeping(made(Normalised), cross_entropy)
    assert bool(engine.clipped_sum(batch(), 1.0).value.isfinite().all())


@pytest.mark.parametrize("engine", [book_keeping, opacus])
def test_a_frozen_backbone_in_evaluation_mode_is_taken(engine: Any) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(IN, 8), nn.BatchNorm1d(8)).requires_grad_(False)
            self.head = nn.Linear(8, CLASSES)

        def train(self, mode: bool = True) -> "Backbone":
            super().train(mode)
            self.body.eval()
            return self

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.body(x))
            return out

    prepared = engine(made(Backbone), cross_entropy)
    rows = batch()
    whole = prepared.clipped_sum(rows, 1.0).value
    less = prepared.clipped_sum(rows.take(torch.arange(1, ROWS)), 1.0).value
    assert float((whole - less).norm()) <= 1 + 1e-4
    still_mixing = nn.Sequential(nn.Linear(IN, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    with pytest.raises(UnsupportedError, match="BatchNorm1d"):
        engine(still_mixing.eval(), cross_entropy)
