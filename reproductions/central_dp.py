"""Central DP-SGD at the accuracy of the papers: MNIST with a CNN and with ScatterNet, and Adult.

    python reproductions/central_dp.py [--directory DATA] [--only cnn scatternet adult] [--smoke]
    python reproductions/central_dp.py --seeds 1 --first-seed 7      # seeds that nobody has seen
    python reproductions/central_dp.py --again --only adult          # what is done, once more
    python reproductions/central_dp.py --table

Data are read from --directory, or from where the environment variable PRIVTRAIN_DATA says. Every
run is written to results/central_dp.json as soon as it is finished, and is not repeated without
`--again`: an interrupted reproduction goes on where it was. Runs at epsilon 3 come first.
`--workers 2` trains two at a time, each with one thread. `--table` prints the tables of the
documentation.

Recipes are those of Tramer and Boneh 2021 (arXiv:2011.11660); what differs is said beside them.
Settings that the paper does not fix were chosen on validation rows (`--validation` trains on
54,000 images and measures on the other 6,000). Test rows are measured once, after training.
"""

import json
import math
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
import tyro

import privtrain as pt
from privtrain.accounting.epsilon import epsilon as epsilon_of
from privtrain.accounting.event import gaussian_event, poisson_sampled, repeated
from privtrain.command.terminal import printing
from privtrain.core.validate import check_count, check_member, check_positive
from privtrain.data.models import LogisticRegression
from privtrain.data.scattering import scattered

RESULTS = Path(__file__).resolve().parent / "results" / "central_dp.json"
DELTA = 1e-5
IGNORE_INTERRUPTS = (signal.SIGINT, signal.SIG_IGN)
"""For workers: the process that started them stops them."""
EPSILONS = (3.0, 1.0, 8.0)
Accounting = Literal["paper", "pld", "none"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained.

    Args:
        name: What it is called.
        expected_batch: Expected batch.
        steps: How many steps.
        learning_rate: Learning rate.
        clipping_norm: L2 norm to which gradients are clipped.
        momentum: Momentum of SGD.
        published_sigma: The paper's noise multiplier at epsilon 3; None where it has none.
        anchor: The paper's accuracy at epsilon 3.
    """

    name: str
    expected_batch: float
    steps: int
    learning_rate: float
    clipping_norm: float
    momentum: float = 0.9
    published_sigma: float | None = None
    anchor: float | None = None

    def trainer(self, rows: int, sigma: float) -> pt.DPSGD:
        """The trainer for a number of rows."""
        return pt.DPSGD(
            epochs=self.steps * self.expected_batch / rows,
            expected_batch=self.expected_batch,
            learning_rate=self.learning_rate,
            optimizer=partial(torch.optim.SGD, momentum=self.momentum),
            release=pt.Release(pt.Gaussian(self.clipping_norm, sigma)),
        )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        # Table 9 of the paper: batch 512, clipping norm 0.1, momentum 0.9.
        Recipe(
            name="cnn",
            expected_batch=512,
            steps=4680,
            learning_rate=0.5,
            clipping_norm=0.1,
            published_sigma=1.23,
            anchor=0.981,
        ),
        # Table 8: batch 4,096. Features are normalised image by image (27 groups), which costs
        # nothing, where the paper's best row pays for data normalisation.
        Recipe(
            name="scatternet",
            expected_batch=4096,
            steps=586,
            learning_rate=8.0,
            clipping_norm=0.1,
            published_sigma=3.04,
            anchor=0.987,
        ),
        # Logistic regression; ours.
        Recipe(name="adult", expected_batch=2048, steps=477, learning_rate=4.0, clipping_norm=0.2),
    )
}


NOT_PRIVATE = pt.SGD(epochs=60, batch_size=1024, learning_rate=0.5)
"""What Adult is held against: the best of a few settings on validation rows."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run."""

    recipe: str
    epsilon: float | None
    accounting: Accounting
    seed: int


@dataclass(frozen=True, kw_only=True)
class Args:
    """What can be changed."""

    directory: Path | None = None
    """Holds the folders mnist and adult (default: the environment variable PRIVTRAIN_DATA)."""
    only: tuple[str, ...] = tuple(RECIPES)
    """Names of recipes."""
    epsilons: tuple[float, ...] = EPSILONS
    """Which epsilons, in which order."""
    seeds: int = 3
    """How many seeds."""
    first_seed: int = 0
    """The first of them; the others follow."""
    workers: int = 1
    """Runs at a time."""
    smoke: bool = False
    """200 steps on few rows, and nothing is written."""
    validation: bool = False
    """Train on nine tenths of the training rows, measure on the rest; nothing is written."""
    again: bool = False
    """Run what is written down already, too; what comes out replaces it."""
    table: bool = False
    """Print the tables of what was measured."""

    def __post_init__(self) -> None:
        check_count(seeds=self.seeds, workers=self.workers)
        check_count(0, first_seed=self.first_seed)
        for name in self.only:
            check_member(RECIPES, only=name)
        for epsilon in self.epsilons:
            check_positive(epsilons=epsilon)


@cache
def problem(
    recipe: str, directory: Path | None, validation: bool, smoke: bool
) -> tuple[pt.Task, pt.FederatedData]:
    """Task and data of a recipe; features are computed once in a process."""
    part = 0.1 if validation else 0.0
    if recipe == "adult":
        task, data = pt.data.adult(directory, parties=1, validation_fraction=part)
    else:
        task, data = pt.data.mnist(directory, parties=1, validation_fraction=part)
    train, test = data.pooled(), data.validation if validation else data.test
    assert test is not None
    if smoke:
        train, test = train.take(torch.arange(4096)), test.take(torch.arange(500))
    if recipe == "scatternet":
        train, test = scattered(train), scattered(test)
        task = replace(task, model=LogisticRegression(train.inputs.shape[1], 10, torch.float32))
    return task, replace(
        data, train={"all": train}, test=test, validation=None, public_rows=len(train)
    )


def classic_sigma(recipe: Recipe, rows: int, epsilon: float) -> float:
    """The noise multiplier with which papers of 2021 met an epsilon: RDP, classic conversion."""

    def cost(sigma: float) -> float:
        step = poisson_sampled(recipe.expected_batch / rows, gaussian_event(sigma))
        event = repeated(step, recipe.steps)
        return epsilon_of(event, DELTA, accountant="rdp", conversion="classic")

    low, high = 0.4, 50.0
    while high - low > 1e-3:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) > epsilon else (low, middle)
    return high


def sigma_of(recipe: Recipe, data: pt.FederatedData, epsilon: float, accounting: str) -> float:
    """The noise multiplier of a recipe at an epsilon."""
    rows = data.public_rows or 0
    if accounting == "paper":
        if epsilon == 3.0 and recipe.published_sigma is not None:
            return recipe.published_sigma
        return classic_sigma(recipe, rows, epsilon)
    calibrated = pt.calibrate(recipe.trainer(rows, 1.0), data, epsilon=epsilon, delta=DELTA)
    assert isinstance(calibrated, pt.DPSGD)
    return float(getattr(calibrated.release.mechanism, "noise_multiplier"))  # noqa: B009


def trained(job: Job, args: Args) -> dict[str, object]:
    """Trains, measures and says what it cost."""
    torch.set_num_threads(1)
    recipe = RECIPES[job.recipe]
    task, data = problem(job.recipe, args.directory, args.validation, args.smoke)
    if args.smoke:
        recipe = replace(recipe, expected_batch=recipe.expected_batch / 8, steps=200)
    rows = data.public_rows or 0
    sigma = None
    if job.epsilon is not None:
        sigma = sigma_of(recipe, data, job.epsilon, job.accounting)
    trainer = NOT_PRIVATE if sigma is None else recipe.trainer(rows, sigma)
    result = pt.fit(trainer, task, data, delta=DELTA, seed=job.seed)
    correct = result.predictor(data.test.inputs).argmax(dim=1) == data.test.labels
    public = next(g for g in result.statement.guarantees if g.observer.name == "public")
    return {
        **asdict(job),
        "sigma": None if sigma is None else round(sigma, 4),
        "rows": rows,
        "steps": public.releases,
        "accuracy": float(correct.double().mean()),
        "epsilon_pld": public.epsilon if math.isfinite(public.epsilon) else None,
        "epsilon_rdp": public.cross_check,
        "seconds": round(result.cost.seconds, 1),
        "torch": torch.__version__,
    }


def jobs(args: Args) -> Iterator[Job]:
    """All runs, the most wanted first."""
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for epsilon in args.epsilons:
        for seed in seeds:
            for name in args.only:
                yield Job(recipe=name, epsilon=epsilon, accounting="pld", seed=seed)
                if RECIPES[name].published_sigma is not None:
                    yield Job(recipe=name, epsilon=epsilon, accounting="paper", seed=seed)
    for name in args.only:
        if name == "adult":  # what privacy costs is measured against the same recipe without it
            for seed in seeds:
                yield Job(recipe=name, epsilon=None, accounting="none", seed=seed)


def read() -> list[dict[str, object]]:
    """What was measured so far."""
    if not RESULTS.exists():
        return []
    rows: list[dict[str, object]] = json.loads(RESULTS.read_text())["rows"]
    return rows


def key_of(row: Mapping[str, object]) -> tuple[object, ...]:
    """What tells a run from others."""
    return tuple(row[name] for name in Job.__dataclass_fields__)


def write(row: dict[str, object]) -> None:
    """Adds a run, or puts it in the place of an earlier one, whole or not at all."""
    RESULTS.parent.mkdir(exist_ok=True)
    beside = RESULTS.with_suffix(".part")
    rows = {key_of(entry): entry for entry in read()} | {key_of(row): row}
    lines = ",\n".join(json.dumps(entry) for entry in rows.values())
    beside.write_text(f'{{"delta": {DELTA}, "rows": [\n{lines}\n]}}\n')
    os.replace(beside, RESULTS)


def missing(args: Args) -> list[Job]:
    """Runs that are not written down yet."""
    done = {key_of(row) for row in read()}
    return [job for job in jobs(args) if key_of(vars(job)) not in done]


def table(rows: list[dict[str, object]]) -> str:
    """A table for the documentation: mean and standard deviation over seeds, worst and best."""
    lines = ["| recipe | ε asked | sigma by | sigma | ε (PLD) | ε (RDP) | accuracy | seeds | s |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    groups: dict[tuple[object, ...], list[dict[str, object]]] = {}
    for row in rows:
        key = (row["recipe"], row["epsilon"] or math.inf, row["accounting"])
        groups.setdefault(key, []).append(row)
    for (name, asked, by), runs in sorted(groups.items(), key=lambda item: str(item[0])):
        scores = [100 * float(str(row["accuracy"])) for row in runs]
        seconds = statistics.median(float(str(row["seconds"])) for row in runs)
        first = runs[0]
        shown = [
            "–" if first[key] is None else f"{float(str(first[key])):.3f}"
            for key in ("sigma", "epsilon_pld", "epsilon_rdp")
        ]
        deviation = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
        spread = f"{statistics.fmean(scores):.2f}{deviation} ({min(scores):.2f}–{max(scores):.2f})"
        lines.append(
            f"| {name} | {asked:g} | {by} | {' | '.join(shown)} | {spread} | {len(runs)} "
            f"| {seconds:.0f} |"
        )
    return "\n".join(lines)


def main(args: Args) -> int:
    """Runs what is missing, and prints each run when it is finished."""
    if args.table:
        print(table(read()))
        return 0
    written, asked = not (args.smoke or args.validation), list(jobs(args))
    todo = missing(args) if written and not args.again else asked
    if len(todo) < len(asked):
        # Beside the runs, which are JSON.
        stream = sys.stderr if todo else sys.stdout
        done = f"{len(asked) - len(todo)} of {len(asked)} runs are in {RESULTS}"
        print(f"{done}. --again repeats them, --table prints their tables.", file=stream)
    keep: Callable[[dict[str, object]], None] = write if written else lambda row: None
    for row in results(todo, args):
        keep(row)
        print(json.dumps(row), flush=True)
    return 0


def results(todo: list[Job], args: Args) -> Iterator[dict[str, object]]:
    """Runs in the order in which they finish; an interrupt does not wait for those under way."""
    if args.workers == 1:
        yield from (trained(job, args) for job in todo)
        return
    pool = ProcessPoolExecutor(args.workers, initializer=signal.signal, initargs=IGNORE_INTERRUPTS)
    try:
        for future in as_completed([pool.submit(trained, job, args) for job in todo]):
            yield future.result()
    except BaseException:
        for worker in list(pool._processes.values()):
            worker.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    try:
        args = tyro.cli(Args, description=__doc__)
        sys.exit(printing(lambda: main(args)))
    except KeyboardInterrupt:
        sys.exit("Stopped. Finished runs are kept; the same command goes on.")
    except (ValueError, pt.PrivtrainError) as error:
        sys.exit(f"central_dp.py: {error}")
