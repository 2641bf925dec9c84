"""Clinics teach a public model to make up names like their patients' (PATE, votes that are drawn).

Who holds what: ten clinics hold lists of names, a patient each. Every clinic splits its patients
among its teachers, so that all characters of a name are seen by one teacher only. A student holds
the alphabet, which is all that it asks about.

Who learns what: no name leaves a clinic. The student asks what follows each character, many times;
every teacher votes, and the aggregator, which reads each clinic's vote counts, adds noise and
answers with the winner. The student, and whoever gets it or what it makes up, learn little about
one patient; the aggregator is promised nothing. No single answer is right:
  top score  every teacher votes for its likeliest character. The student learns a name by heart.
  drawn      every teacher draws its vote from its own distribution, with randomness that all share
             (CoordinatedDraw): teachers agree, and the answers are as diverse as the names are.

The names are made up here, too, by a chain that the student is compared with. Seconds on a laptop.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import torch
import tyro
from torch import Tensor, nn

import privtrain as pt

ALPHABET = ".aeioulmnrstk"
"""The first character begins and ends a name."""


@dataclass(frozen=True, kw_only=True)
class Args:
    """What can be changed."""

    epsilon: float = 4.0
    """What is promised for each patient, that is for all characters of a name."""
    delta: float = 1e-5
    """Delta of the promise; below one over the number of patients."""
    patients: int = 6000
    """How many names the clinics hold together."""
    teachers: int = 200
    """How many teachers."""
    draws: int = 30
    """How often the student asks what follows each character."""
    seed: int = 0
    """Seed of the names, and of everything that is not noise."""
    out: Path | None = None
    """Folder for names.txt: what the student makes up."""


def chain(seed: int) -> Tensor:
    """Which character follows which, with what probability: vowels and consonants take turns."""
    size, generator = len(ALPHABET), torch.Generator().manual_seed(seed)
    weights = torch.rand(size, size, generator=generator, dtype=torch.float64) ** 3 + 0.02
    vowel = torch.tensor([character in "aeiou" for character in ALPHABET])
    weights[1:][vowel[1:, None] == vowel] *= 0.2
    weights[:, 0] = 0.6 * vowel  # where a name ends
    return weights / weights.sum(dim=1, keepdim=True)


def written(follows: Tensor, count: int, seed: int) -> list[list[int]]:
    """Names of at most twelve characters, as places in the alphabet from begin to end."""
    generator, names = torch.Generator().manual_seed(seed), [[0] for _ in range(count)]
    for name in names:
        while len(name) < 13 and (len(name) == 1 or name[-1] != 0):
            name.append(int(torch.multinomial(follows[name[-1]], 1, generator=generator)))
    return names


def rows_of(names: list[list[int]], first: int = 0) -> pt.Rows:
    """A row for each character: what stands before it, which it is, and whose name it is in."""
    rows = [(*pair, first + i) for i, name in enumerate(names) for pair in pairwise(name)]
    before, after, users = torch.tensor(rows).T
    return pt.Rows(asked(before), after, users)


def asked(characters: Tensor) -> Tensor:
    """Characters as inputs, shape `(rows, alphabet)`."""
    return nn.functional.one_hot(characters, len(ALPHABET)).float()


def load(args: Args) -> tuple[pt.Task, pt.FederatedData]:
    """The clinics' names, and public questions: every character, so often."""
    follows = chain(args.seed)
    names = written(follows, args.patients, args.seed + 1)
    clinics = {f"clinic-{i}": rows_of(names[i::10], i * args.patients) for i in range(10)}
    test = rows_of(written(follows, 500, args.seed + 2))
    questions = pt.Rows(asked(torch.arange(len(ALPHABET)).repeat(args.draws)))
    task = pt.Task(model=lambda: nn.Linear(len(ALPHABET), len(ALPHABET)), name="names")
    return task, pt.FederatedData(train=clinics, test=test, public=questions, name="names")


def ways(args: Args, data: pt.FederatedData) -> dict[str, pt.PATE]:
    """Both ways of voting, at the same noise and the same promise."""
    steps = pt.PlainSteps(epochs=6, batch_size=64, learning_rate=0.1, optimizer="Adam")
    drawn = pt.PATE(
        teachers=args.teachers,
        queries=args.draws * len(ALPHABET),
        steps=steps,
        student=replace(steps, epochs=60),
        assigned_by=pt.USERS,
        vote=pt.CoordinatedDraw(),
    )
    noised = cast(pt.PATE, pt.calibrate(drawn, data, epsilon=args.epsilon, delta=args.delta))
    return {"top score": replace(noised, vote=pt.TopScore()), "drawn": noised}


class Made(NamedTuple):
    """What a student makes up: its statement, names, and figures of the next character."""

    statement: pt.PrivacyStatement
    names: list[str]
    bits: float  # of entropy
    distance: float  # in total variation, from the chain that made the clinics' names


def main(args: Args) -> dict[str, Made]:
    """Trains a student for each way of voting, and prints what it learned and makes up."""
    torch.set_num_threads(1)  # the models are small: more threads only wait for each other
    if args.out is not None and (args.out / "names.txt").exists():
        raise pt.DataError(f"Expected out={str(args.out)!r} to hold no names.txt; take another.")
    (task, data), follows, made = load(args), chain(args.seed), {}
    often = torch.linalg.matrix_power(follows, 200)[0]  # how often a character is the last one
    for label, trainer in ways(args, data).items():
        result = pt.fit(trainer, task, data, delta=args.delta, seed=args.seed)
        learned = result.predictor(asked(torch.arange(len(ALPHABET)))).double().softmax(dim=1)
        drawn = written(learned, 200, args.seed + 3)
        names = ["".join(ALPHABET[place] for place in name if place) for name in drawn]
        bits = float(-(often[:, None] * learned * learned.log2()).sum())
        distance = float((often[:, None] * (learned - follows).abs()).sum() / 2)
        made[label] = Made(result.statement, names, bits, distance)
        print(
            f"{label}: {result.statement.guarantees[0].claim}; {bits:.2f} bits a character, "
            f"{distance:.2f} from the clinics' names, {len(set(names))} different names of 200, "
            f"such as {', '.join(names[:6])}"
        )
    print(f"\n{made['drawn'].statement}")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "names.txt").write_text("\n".join(made["drawn"].names) + "\n")
    return made


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (OSError, ValueError, pt.PrivtrainError) as error:
        raise SystemExit(f"names.py: {error}") from None
