"""Models and losses in which rows influence one another, mostly without a gradient between them."""

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from privtrain.core.task import Loss, cross_entropy

IN, HIDDEN, CLASSES = 20, 32, 5


class Own(nn.Module):
    """A model with a parameter that belongs to no layer, so that `torch.func` takes it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.own = body, nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x) + self.own
        return out


class Hidden(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, between: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.between = between
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.between(self.body(x)))
        return out


class Keeping(Hidden):
    """The same, where what is between is told what was kept, and returns what to keep."""

    def forward(self, x: Tensor) -> Tensor:
        hidden, self.kept = self.between(self.body(x), self.kept)
        out: Tensor = self.head(hidden)
        return out


class Experts(nn.Module):
    """Switch routing: each expert takes the first rows that choose it, until it is full."""

    def __init__(self, capacity: float) -> None:
        super().__init__()
        self.gate, self.capacity = nn.Linear(IN, 4), capacity
        self.experts = nn.ModuleList(nn.Linear(IN, HIDDEN) for _ in range(4))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(dim=1)
        best = share.argmax(dim=1)
        chosen = functional.one_hot(best, 4)
        queue = (chosen.cumsum(dim=0) * chosen).sum(dim=1)
        taken = (queue <= self.capacity * len(x) / 4).to(x.dtype)
        every = torch.stack([expert(x) for expert in self.experts], dim=1)
        own = every[torch.arange(len(x)), best] * (share.amax(dim=1) * taken).unsqueeze(1)
        out: Tensor = self.head(torch.relu(own))
        return out


class BackwardByTheBatch(torch.autograd.Function):
    """The identity, whose gradient is scaled by the largest of the batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / (1e-3 + gradient.abs().max())


def quantised(h: Tensor) -> Tensor:
    h = torch.relu(h)
    scale = h.detach().abs().max() / 7
    return h + ((h / scale).round() * scale - h).detach()


def quantised_by_torch(h: Tensor) -> Tensor:
    scale = float(h.detach().abs().max()) / 127
    return torch.fake_quantize_per_tensor_affine(h.float(), scale, 0, -128, 127).to(h.dtype)


def standardised(h: Tensor) -> Tensor:
    return (h - h.detach().mean(dim=0)) / (h.detach().std(dim=0) + 1e-5)


def scaled_without_grad(h: Tensor) -> Tensor:
    with torch.no_grad():
        size = h.norm()
    return h / size


def below_the_quantile(h: Tensor) -> Tensor:
    return h * (h.detach() < h.detach().quantile(0.9))


def ranked(h: Tensor) -> Tensor:
    return h + h.detach().argsort(dim=0).argsort(dim=0) / len(h)


def by_place(h: Tensor) -> Tensor:
    return h * torch.linspace(0.5, 1.5, 1000).to(h)[: len(h)].unsqueeze(1)


def own_mask(h: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return h * (torch.rand(h.shape, generator=generator) < 0.5)


def reseeded(h: Tensor) -> Tensor:
    torch.manual_seed(0)
    return functional.dropout(h)


def forked(h: Tensor) -> Tensor:
    with torch.random.fork_rng():
        return reseeded(h)


def by_numpy(h: Tensor) -> Tensor:
    return h * torch.from_numpy(np.random.default_rng().random(h.shape)).to(h)


def by_numpys_place(h: Tensor) -> Tensor:
    return h * torch.from_numpy(np.random.rand(*h.shape)).to(h)


def by_pythons_place(h: Tensor) -> Tensor:
    return h * torch.tensor([random.random() for _ in range(len(h))]).to(h).unsqueeze(1)


def as_often_as_rows(h: Tensor) -> Tensor:
    return h * float(np.random.rand(len(h))[0] < 0.5)


def by_the_system(h: Tensor) -> Tensor:
    return h * (os.urandom(1)[0] / 255)


def with_another(h: Tensor) -> Tensor:
    return h + 0.1 * h.detach()[torch.randperm(len(h))]


def by_the_first_coin(h: Tensor) -> Tensor:
    return h * (torch.rand(len(h), device=h.device)[0] < 0.5)


def now_and_then(h: Tensor) -> Tensor:
    if float(torch.rand(())) < 0.5:
        return h
    return standardised(h)


def with_a_law_of_the_batch(h: Tensor) -> Tensor:
    return h * torch.bernoulli(torch.full_like(h, 0.9) - h.detach().sigmoid().mean() / 2)


def hooked(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient / gradient.norm())
    return torch.relu(h)


def cut_off(h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda g: g * (g.abs() > 0.01 * g.abs().max()))
    return torch.relu(h)


def a_hundredth(h: Tensor) -> Tensor:
    return h + 0.01 * h.detach().mean(dim=0)


BETWEEN: dict[str, Callable[[Tensor], Tensor]] = {
    "dynamic quantisation": quantised,
    "torch's quantisation": quantised_by_torch,
    "detached statistics": standardised,
    "detached norm": scaled_without_grad,
    "quantile": below_the_quantile,
    "ranks": ranked,
    "place": by_place,
    "mask of a generator of its own": own_mask,
    "mask of a seed": reseeded,
    "mask of a seed, put back": forked,
    "numpy's default_rng": by_numpy,
    "numpy by place": by_numpys_place,
    "Python by place": by_pythons_place,
    "numpy as often as rows": as_often_as_rows,
    "the system": by_the_system,
    "another row": with_another,
    "the first row's coin": by_the_first_coin,
    "statistics now and then": now_and_then,
    "a law of the batch": with_a_law_of_the_batch,
    "backward by the norm": hooked,
    "backward by the largest": lambda h: BackwardByTheBatch.apply(h),
    "backward cut off": cut_off,
    "a hundredth of the mean": a_hundredth,
}

KEEPING: dict[str, Callable[[Tensor, Any], tuple[Tensor, Any]]] = {
    "the first batch": lambda h, kept: (
        (h, h.detach().mean(dim=0)) if kept is None else (h - kept, kept)
    ),
    "the batch before": lambda h, kept: (h if kept is None else h - kept, h.detach().mean(dim=0)),
    "a moving mean": lambda h, kept: (
        (h, h.detach().mean(dim=0))
        if kept is None
        else (h - kept, 0.9 * kept + 0.1 * h.detach()[0])
    ),
}


def by_the_largest(logits: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(logits, targets)
    return losses * losses / losses.detach().max()


def averaged(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) / len(logits)


def by_class(logits: Tensor, targets: Tensor) -> Tensor:
    counts = torch.bincount(targets, minlength=CLASSES)
    return cross_entropy(logits, targets) / counts[targets] * len(targets)


def by_answers(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) * len(logits.detach().argmax(dim=1).unique())


def hardest(logits: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(logits, targets)
    return losses * (losses.detach() >= losses.detach().topk(len(losses) // 2).values[-1])


LOSSES: dict[str, Loss] = {
    "the largest": by_the_largest,
    "the number of rows": averaged,
    "the classes": by_class,
    "the answers": by_answers,
    "the hardest": hardest,
}


def plain() -> nn.Module:
    return Hidden(torch.relu)


SOCIABLE: dict[str, tuple[Callable[[], nn.Module], Loss]] = {
    **{name: (lambda f=f: Hidden(f), cross_entropy) for name, f in BETWEEN.items()},
    **{name: (lambda f=f: Keeping(f), cross_entropy) for name, f in KEEPING.items()},
    **{name: (plain, loss) for name, loss in LOSSES.items()},
    "full experts": (lambda: Experts(1.25), cross_entropy),
    "wide experts": (lambda: Experts(2.0), cross_entropy),
}
"""What makes a model and a loss, none of which treats a row alone."""
