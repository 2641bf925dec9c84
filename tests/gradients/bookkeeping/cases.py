"""Models of every layer that has a formula, and the plain loop beside them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privtrain.core.task import Loss, Rows, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping, BookKeepingEngine
from privtrain.gradients.gradients import ClippedSum
from tests.gradients.loops import (
    Make,
    Shared,
    Tied,
    clipped,
    cnn,
    example_gradients,
    frozen_mlp,
    group_norm,
    in_float64,
    layer_norm,
    mlp,
)

C = 0.4
ROUNDING = 1 + 1e-6


class OverTime(nn.Module):
    """Classifies by the mean over all dimensions between the first and the last."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out.mean(dim=tuple(range(1, out.dim() - 1)))


class OverSpace(nn.Module):
    """Classifies by the mean over all dimensions behind the second."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return torch.tanh(out).flatten(2).mean(dim=2)


class Language(nn.Module):
    """A model of tokens whose last layer has the weight of its first."""

    def __init__(self, tied: bool = True, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=padding)
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(self.table(x.long())))
        out: Tensor = self.head(hidden).mean(dim=1)
        return out


class Attention(nn.Module):
    """One block of a transformer, of linear layers alone."""

    def __init__(self, width: int = 6, heads: int = 2) -> None:
        super().__init__()
        self.norm, self.again = nn.LayerNorm(width), nn.RMSNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 12), nn.Linear(12, width)
        self.head, self.heads = nn.Linear(width, 3), heads

    def forward(self, x: Tensor) -> Tensor:
        rows, time, width = x.shape
        three = self.mix(self.norm(x)).view(rows, time, 3, self.heads, width // self.heads)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, time, width))
        x = x + self.narrow(nn.functional.gelu(self.wide(self.again(x))))
        out: Tensor = self.head(x.mean(dim=1))
        return out


class Recurrent(nn.Module):
    """A recurrent network whose cell is two linear layers, called once a step."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.kept = nn.Linear(4, 5), nn.Linear(5, 5, bias=False)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 5)
        for step in x.unbind(dim=1):
            state = torch.tanh(self.given(step) + self.kept(state))
        out: Tensor = self.head(state)
        return out


class LowRank(nn.Module):
    """A frozen layer beside a trained one of low rank (LoRA)."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.frozen(x) + self.up(self.down(x))))
        return out


def half_frozen() -> nn.Module:
    model = Attention()
    model.mix.weight.requires_grad_(False)
    model.wide.bias.requires_grad_(False)
    return model


@dataclass(frozen=True)
class Case:
    """A model and the shape of one of its inputs; whole numbers below `tokens` if that is given."""

    make: Make
    shape: tuple[int, ...]
    tokens: int = 0
    classes: int = 3

    def rows(self, count: int = 7, seed: int = 1) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        shape = (count, *self.shape)
        inputs = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        if self.tokens:
            inputs = torch.randint(self.tokens, shape, generator=generator).double()
        return Rows(inputs, torch.randint(self.classes, (count,), generator=generator))


def conv(*arguments: int, **settings: object) -> Make:
    layer: Callable[..., nn.Module] = nn.Conv2d
    return lambda: OverSpace(layer(*arguments, **settings), nn.Conv2d(arguments[1], 3, 1))


def conv1(*arguments: int, **settings: object) -> Make:
    layer: Callable[..., nn.Module] = nn.Conv1d
    return lambda: OverSpace(layer(*arguments, **settings), nn.Conv1d(arguments[1], 3, 1))


CASES = {
    "mlp": Case(mlp, (6,)),
    "frozen": Case(frozen_mlp, (6,)),
    "cnn": Case(cnn, (1, 6, 6)),
    "group norm": Case(group_norm, (1, 6, 6)),
    "layer norm": Case(layer_norm, (6,)),
    "shared": Case(Shared, (6,)),
    "tied": Case(Tied, (6,)),
    "low rank": Case(LowRank, (6,)),
    "over time": Case(lambda: OverTime(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), (4, 6)),
    "short in time": Case(
        lambda: OverTime(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)), (3, 20)
    ),
    "two leading": Case(lambda: OverTime(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)), (2, 3, 6)),
    "attention": Case(Attention, (5, 6)),
    "half frozen": Case(half_frozen, (5, 6)),
    "recurrent": Case(Recurrent, (6, 4)),
    "tokens": Case(lambda: Language(False), (5,), 11, 11),
    "padded tokens": Case(lambda: Language(False, 2), (5,), 11, 11),
    "tied tokens": Case(Language, (5,), 11, 11),
    "tied padded tokens": Case(lambda: Language(True, 2), (5,), 11, 11),
    "stride": Case(conv(2, 4, 3, stride=(2, 1), padding=(1, 2)), (2, 7, 6)),
    "dilation": Case(conv(2, 4, 3, dilation=2, padding=2), (2, 7, 6)),
    "groups": Case(conv(4, 6, 3, groups=2, bias=False), (4, 7, 6)),
    "depthwise": Case(conv(4, 4, 3, groups=4), (4, 7, 6)),
    "same": Case(conv(2, 4, 4, padding="same"), (2, 7, 6)),
    "circular": Case(conv(2, 4, 3, padding=1, padding_mode="circular"), (2, 7, 6)),
    "wide kernel": Case(conv(16, 24, 3), (16, 4, 4)),
    "wide groups": Case(conv(16, 24, 3, groups=2, stride=2, padding=1), (16, 4, 4)),
    "very wide kernel": Case(conv(16, 24, 5, padding=2), (16, 6, 6)),
    "large planes": Case(conv(8, 8, 5, padding=2), (8, 9, 9)),
    "time stride": Case(conv1(2, 4, 3, stride=2, padding=1), (2, 9)),
    "time groups": Case(conv1(4, 6, 3, groups=2, dilation=2), (4, 9)),
    "time wide": Case(conv1(16, 24, 3, padding="same"), (16, 4)),
    "instance norm": Case(
        lambda: OverSpace(nn.Conv2d(1, 3, 3), nn.InstanceNorm2d(3, affine=True)), (1, 6, 6)
    ),
    "rms norm": Case(lambda: OverTime(nn.Linear(6, 3), nn.RMSNorm(3)), (4, 6)),
    "norm of planes": Case(lambda: OverTime(nn.LayerNorm((4, 6)), nn.Linear(6, 3)), (2, 4, 6)),
    "in place": Case(lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(True), nn.Linear(9, 3)), (6,)),
}


def engine_of(
    make: Make, loss: Loss = cross_entropy, micro_batch: int | None = None
) -> BookKeepingEngine:
    engine = BookKeeping(micro_batch=micro_batch).engine(in_float64(make), loss)
    assert isinstance(engine, BookKeepingEngine)
    return engine


def expected(make: Make, rows: Rows, bound: float = C) -> Tensor:
    return clipped(example_gradients(in_float64(make), rows), bound).sum(dim=0)


def equal(found: ClippedSum, wanted: Tensor) -> None:
    torch.testing.assert_close(found.value, wanted, rtol=1e-9, atol=1e-11)
