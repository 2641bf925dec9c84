"""The plan command: what answers of teachers cost, before any teacher is trained."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

Real = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]

Reals = Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT ...", help_behavior_hint="")]

Counts = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Show what answers of PATE's teachers cost and how often they are right; nothing is trained.

    Example: privtrain plan --teachers 250 --answers 286 --sigmas 40 50 --queries 487 1000
    --threshold 200 --sigma-check 150
    """

    teachers: int
    """How many teachers vote."""
    answers: tuple[int, ...] = (100, 286, 500, 1000)
    """How many queries are answered at most."""
    sigmas: Reals = ()
    """Noise on each count of an answer, in votes (default: 40 50 100)."""
    epsilon: Real = None
    """Choose the least noise for this epsilon instead."""
    classes: int = 10
    """How many classes the teachers choose from."""
    share: float = 0.8
    """The share of the votes that the winner of a clear vote has; a rival has all others."""
    delta: float = 1e-5
    """Delta of every epsilon."""
    queries: Counts = ()
    """How many queries are asked and checked at most (default: none is checked)."""
    threshold: Real = None
    """The count that a query's winner has to reach."""
    sigma_check: Real = None
    """Noise on that count."""
    json: bool = False
    """Print the rows as JSON, and nothing else."""


def plan_command(args: Plan) -> int:
    """Prints the plan.

    Returns:
        The exit code, 0.

    Raises:
        ValueError: If an argument is out of its range.
        BudgetExceededError: If no noise keeps the epsilon.
    """
    from privtrain.release.planning import plan

    table = plan(
        teachers=args.teachers,
        answers=args.answers,
        sigmas=args.sigmas or None,
        epsilon=args.epsilon,
        classes=args.classes,
        share=args.share,
        delta=args.delta,
        queries=args.queries or None,
        threshold=args.threshold,
        sigma_check=args.sigma_check,
    )
    print(json.dumps([asdict(row) for row in table.rows], indent=2) if args.json else table)
    return 0
