"""One step of DP-SGD, noise included, against one of SGD and against Opacus's own modes.

    python benchmarks/per_example.py [--quick] [--json]
    python benchmarks/per_example.py --against CHECKOUT

Every side steps the same model on the same batch with `torch.optim.SGD`; one thread. Ours is what
`DPSGD(gradients=BookKeeping())` runs in each step: clipped sum, noise, optimizer. Opacus's sides
are its own `PrivacyEngine`. Before anything is timed, our clipped sums are held against gradients
that are formed one example at a time. A mode that cannot take a model is named in the results.
Peak memory is measured for each side in a process of its own, beyond what the process had before.

`--against` measures whole steps of `fit` with `DPSGD` in this checkout and in another one, such as
the commit before a change: one process a side, which step in turn.
"""

import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from harness import CHECKOUT, PAIRS, SEED, Report, Row, checkouts, compare, in_turn, main
from torch import Tensor, nn

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(CHECKOUT))

import privtrain as pt
from privtrain.core.parameters import trainable
from privtrain.core.seeding import SeededEntropy
from privtrain.core.task import FederatedData, Rows, Task, cross_entropy
from privtrain.gradients.bookkeeping.engine import BookKeeping
from privtrain.gradients.bookkeeping.torch_func import TorchFuncEngine
from privtrain.mechanisms.gaussian import Gaussian
from privtrain.steps.optimizers import GradientVector, descend

C, Z, LEARNING_RATE = 1.0, 1.0, 1e-3
Step = Callable[[], object]


def mlp() -> nn.Module:
    """235,146 parameters."""
    layers = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*layers)


def cnn() -> nn.Module:
    """26,010 parameters: Tramer and Boneh 2021, table 9."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Conv2d(16, 32, 4, stride=2), nn.Tanh(), nn.MaxPool2d(2, 1)),
        *(nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10)),
    )


def group_norm_cnn() -> nn.Module:
    """422,922 parameters."""

    def block(given: int, made: int) -> list[nn.Module]:
        conv = nn.Conv2d(given, made, 3, padding=1, bias=False)
        return [conv, nn.GroupNorm(8, made), nn.ReLU(), nn.MaxPool2d(2)]

    head = [nn.Flatten(), nn.Linear(2048, 160), nn.ReLU(), nn.Linear(160, 10)]
    return nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 128), *head)


class Block(nn.Module):
    """A block of a transformer, of linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.again = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        rows, time, width = x.shape
        three = self.mix(self.before(x)).view(rows, time, 3, self.heads, width // self.heads)
        query, key, value = three.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(rows, time, width))
        out: Tensor = x + self.narrow(nn.functional.gelu(self.wide(self.again(x))))
        return out


class Transformer(nn.Module):
    """166,274 parameters: 1,000 tokens, length 32, width 64, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(1000, 64), nn.Embedding(32, 64)
        self.blocks = nn.Sequential(Block(64, 4), Block(64, 4))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        hidden = self.blocks(self.tokens(x) + self.places(places))
        out: Tensor = self.head(self.norm(hidden).mean(dim=1))
        return out


class UnrolledLSTM(nn.Module):
    """56,794 parameters: an LSTM over the 28 lines of an image, as two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.kept = nn.Linear(28, 416), nn.Linear(104, 416)
        self.head = nn.Linear(104, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        hidden = cell = x.new_zeros(len(x), 104)
        for step in self.given(x).unbind(dim=1):
            now, forget, new, out = (step + self.kept(hidden)).chunk(4, dim=1)
            cell = torch.sigmoid(forget) * cell + torch.sigmoid(now) * torch.tanh(new)
            hidden = torch.sigmoid(out) * torch.tanh(cell)
        logits: Tensor = self.head(hidden)
        return logits


class FusedLSTM(nn.Module):
    """The same network with torch's own LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LSTM(28, 104, batch_first=True), nn.Linear(104, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.body(x)[0][:, -1])
        return logits


@dataclass(frozen=True)
class Work:
    """A model and its batch.

    Args:
        make: Makes the model.
        batch: Examples in a batch.
        shape: Shape of one input.
        classes: How many classes.
        tokens: Inputs are whole numbers below this, if it is not zero.
        fused: The same network by torch's fused layer, for SGD.
    """

    make: Callable[[], nn.Module]
    batch: int
    shape: tuple[int, ...]
    classes: int = 10
    tokens: int = 0
    fused: Callable[[], nn.Module] | None = None

    def rows(self) -> Rows:
        """Random rows; times do not depend on them."""
        generator = torch.Generator().manual_seed(SEED)
        shape = (self.batch, *self.shape)
        inputs = torch.randn(shape, generator=generator)
        if self.tokens:
            inputs = torch.randint(self.tokens, shape, generator=generator)
        return Rows(inputs, torch.randint(self.classes, (self.batch,), generator=generator))

    def model(self) -> nn.Module:
        """The model, always with the same weights."""
        torch.manual_seed(SEED)
        return self.make()


WORKS: Mapping[str, Work] = {
    "mlp-235k": Work(mlp, 256, (784,)),
    "cnn-26k": Work(cnn, 512, (1, 28, 28)),
    "gn-cnn-422k": Work(group_norm_cnn, 64, (3, 32, 32)),
    "transformer-166k": Work(Transformer, 64, (32,), 2, 1000),
    "lstm-57k": Work(UnrolledLSTM, 128, (28, 28), fused=FusedLSTM),
}


def bookkeeping(work: Work) -> Step:
    """A step of `DPSGD(gradients=BookKeeping())`."""
    model, rows, mechanism = work.model(), work.rows(), Gaussian(C, Z)
    engine = BookKeeping().engine(model, cross_entropy)
    parameters, entropy, rounds = trainable(model), SeededEntropy(SEED), count()
    optimizer, gradient = torch.optim.SGD(parameters, LEARNING_RATE), GradientVector(parameters)

    def step() -> None:
        value = engine.clipped_sum(rows, C).value
        released, _ = mechanism.add(value, None, entropy["noise", next(rounds), ""])
        gradient.set(released, work.batch)
        optimizer.step()

    return step


def sgd(work: Work) -> Step:
    """A step of SGD."""
    model, rows = work.model(), work.rows()
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    return partial(descend, model, optimizer, cross_entropy, rows.inputs, rows.labels)


def fused(work: Work) -> Step:
    """A step of SGD with torch's fused layer."""
    if work.fused is None:
        raise ValueError("Expected fused=None to be given for this model.")
    return sgd(Work(work.fused, work.batch, work.shape, work.classes))


def opacus(work: Work, mode: str) -> Step:
    """A step of Opacus: its engine, its optimizer, its noise; the batch is given."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    rows, model = work.rows(), work.model()
    optimizer: Any = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    loader = DataLoader(TensorDataset(rows.inputs, rows.labels), batch_size=work.batch)
    criterion: Any = nn.CrossEntropyLoss()
    settings = {"noise_multiplier": Z, "max_grad_norm": C, "poisson_sampling": False}
    made: Any = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        criterion=criterion,
        grad_sample_mode=mode,
        **settings,
    )
    module, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else criterion

    def step() -> None:
        optimizer.zero_grad()
        criterion(module(rows.inputs), rows.labels).backward()
        optimizer.step()

    return step


SIDES: Mapping[str, Callable[[Work], Step]] = {
    "bookkeeping": bookkeeping,
    "sgd": sgd,
    "sgd-fused": fused,
    "opacus-hooks": partial(opacus, mode="hooks"),
    "opacus-ghost": partial(opacus, mode="ghost"),
    "opacus-functorch": partial(opacus, mode="functorch"),
}

REFUSED: dict[str, str] = {}
MEMORY: dict[str, dict[str, Any]] = {}


def check(work: Work) -> None:
    """Compares a clipped sum with gradients formed by themselves, in float64."""
    model, rows = work.model().double(), work.rows().take(torch.arange(8))
    if not work.tokens:
        rows = Rows(rows.inputs.double(), rows.labels)
    engine = BookKeeping().engine(model, cross_entropy)
    by_formulas = engine.clipped_sum(rows, C).value
    if engine.notes:
        raise RuntimeError(f"Expected a formula for every parameter of this model; {engine.notes}.")
    wanted = TorchFuncEngine(model, cross_entropy).clipped_sum(rows, C).value
    torch.testing.assert_close(by_formulas, wanted, rtol=1e-9, atol=1e-11)


def build_rows(quick: bool) -> list[Row]:
    """Every work against every side; a quick run leaves out what is slow."""
    warnings.simplefilter("ignore")
    rows = []
    for name, work in list(WORKS.items())[:: 4 if quick else 1]:
        check(work)
        for side in ("sgd", "opacus-hooks") if quick else SIDES:
            if side != "bookkeeping" and not (side == "sgd-fused" and work.fused is None):
                rows += _row(name, work, side, quick)
        if not quick:
            MEMORY[name] = _memory(name, work)
    return rows


def _row(name: str, work: Work, side: str, quick: bool) -> list[Row]:
    try:
        other = SIDES[side](work)
        other()
    except (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        REFUSED[f"{name} by {side}"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return []
    pairs = {"sgd": 15, "sgd-fused": 15}.get(side, 5)
    return [
        compare(
            name,
            bookkeeping(work),
            other,
            ours_name="bookkeeping",
            against_name=side,
            repeats=5 if quick else pairs,
            warmup=2,
        )
    ]


def _memory(name: str, work: Work) -> dict[str, Any]:
    """MB that each side's steps take at most, in a process of its own."""
    memory: dict[str, Any] = {}
    for side in SIDES:
        if side == "sgd-fused" and work.fused is None:
            continue
        command = [sys.executable, __file__, "--memory", name, side]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            memory |= {side: json.loads(done.stdout)}
    return memory


def _measure_memory(name: str, side: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    step = SIDES[side](WORKS[name])
    before = _peak_mb()
    for _ in range(4):
        step()
    after = _peak_mb()
    print(json.dumps({"process_mb": after, "steps_mb": after - before}))


def _peak_mb() -> float:
    """Largest memory of this process; what `getrusage` says counts the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) / 1024  # type: ignore[union-attr]


SECONDS = 0.4
"""Of two checkouts: about how long each timing takes."""


def _serve(name: str) -> None:
    """Trains, and after each number of steps that it reads says how long they took."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    work = WORKS[name]
    rows = work.rows()
    left, started = 0, 0.0

    def progress(done: int, total: int) -> None:
        nonlocal left, started
        left -= 1
        if left <= 0:
            if done > 1:
                print(time.perf_counter() - started, flush=True)
            asked = sys.stdin.readline()
            if not asked:
                sys.exit()
            left, started = int(asked), time.perf_counter()

    # Every step takes all rows: both sides do the same work in each of them.
    trainer = pt.DPSGD(
        epochs=1_000_000,
        expected_batch=float(work.batch),
        sampling_rate=1.0,
        learning_rate=LEARNING_RATE,
        release=pt.Release(Gaussian(C, Z)),
    )
    data = FederatedData(
        train={"all": rows}, test=rows.take(torch.arange(2)), public_rows=work.batch
    )
    pt.fit(trainer, Task(model=work.model), data, seed=SEED, progress=progress)


def _seconds_a_step(side: Callable[[object], float], steps: int) -> float:
    return side(steps) / steps


def _against(checkout: Path, quick: bool) -> list[Row]:
    """Whole steps of this checkout and of another one, in turn."""
    found = []
    for name in list(WORKS)[: 1 if quick else None]:
        with checkouts(checkout, "--serve", name) as sides:
            probe = [side(5) for side in (*sides, *sides)]
            steps = max(2, round(SECONDS / (min(probe) / 5)))
            ours, other = (partial(_seconds_a_step, side, steps) for side in sides)
            names = {"ours_name": "this", "against_name": "other"}
            found.append(in_turn(name, ours, other, repeats=5 if quick else PAIRS, **names))
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--memory"]:
        _measure_memory(sys.argv[2], sys.argv[3])
    elif sys.argv[1:2] == ["--serve"]:
        _serve(sys.argv[2])
    else:
        extras: Report = {"peak_memory": MEMORY, "refused": REFUSED}
        main(build_rows, extras=extras, against=_against)
