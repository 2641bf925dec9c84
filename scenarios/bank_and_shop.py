"""A bank and a shop know different things about the same customers, and train one model on both.

Who holds what: the bank knows work, hours, capital gains and losses, and which customers earn more
than 50,000 dollars a year. The shop knows age, education, family, origin and the rest. A dealer
holds no customers. (Adult; without its files breast cancer records, half of the columns each.)

Who learns what:
  bank alone     the bank's records stay there, and the shop's knowledge is not used.
  pooled         a curator reads every record of both. The yardstick; often the law forbids it.
  pooled, DP     the same, and whoever gets the model learns little about one customer.
  on shares      neither reads the other's columns, nor the shop a label; both read the model. A
                 dealer, who learns shapes, prepares randomness; with either it could read all.

All four are logistic regression. With --cheat the bank computes something else than agreed, which
ring64 and crypten do not notice, and spdz2k does. On a host each: docs/scenarios.md.
"""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lie
import torch
import tyro

import privtrain as pt

ENGINES: dict[str, Any] = {"ring64": pt.Ring64(), "crypten": pt.CrypTen(), "spdz2k": pt.SPDZ2k()}
MESHES: dict[str, Any] = {"threads": pt.Threads(), "processes": pt.Processes()}
BANK, SHOP = "bank", "shop"
OF_THE_BANK = ("workclass", "occupation", "capital-gain", "capital-loss", "hours-per-week")
ALONE, POOLED, NOISED, SHARED = "bank alone", "pooled", "pooled, DP", "on shares"


@dataclass(frozen=True, kw_only=True)
class Args:
    """What can be changed."""

    directory: Path | None = None
    """Where the files of Adult lie; None for PRIVTRAIN_DATA, or breast cancer without it."""
    mesh: Literal["threads", "processes"] = "processes"
    """How bank, shop and dealer run here: threads of one process, or a process each, over TLS."""
    engine: Literal["ring64", "crypten", "spdz2k"] = "ring64"
    """What computes on shares; crypten, whose dealer is the bank, has to be installed."""
    cheat: bool = False
    """Print what the shop reads where the bank lies, under each engine, and do nothing else."""
    epochs: int = 5
    """Passes over the customers, pooled and on shares alike."""
    batch_size: int = 256
    """Customers in a batch."""
    epsilon: float = 1.0
    """What DP-SGD promises each customer."""
    delta: float = 1e-5
    """Delta of every promise; below one over the number of customers."""
    seed: int = 0
    """Public seed: initial weights and the order of customers."""
    out: Path | None = None
    """Folder for comparison.json, table.csv, table.tex and report.html."""
    force: bool = False
    """Overwrite what is in that folder."""


def load(args: Args) -> tuple[pt.Task, pt.FederatedData]:
    """The customers: the bank's columns and the labels, then the shop's columns."""
    if args.directory is None and "PRIVTRAIN_DATA" not in os.environ:
        halves = pt.data.ByColumn(label_holder=BANK)
        return pt.data.breast_cancer(parties=(BANK, SHOP), partition=halves, seed=args.seed)
    _, one_table = pt.data.adult(args.directory, parties=1)
    held: dict[str, list[int]] = {BANK: [], SHOP: []}
    assert one_table.encoder is not None and one_table.encoder.columns is not None
    for column in one_table.encoder.columns:
        before = sum(map(len, held.values()))
        whose = held[BANK if column.name in OF_THE_BANK else SHOP]
        whose += range(before, before + column.width)
    split = pt.data.ByColumn((tuple(held[BANK]), tuple(held[SHOP])), label_holder=BANK)
    return pt.data.adult(args.directory, parties=tuple(held), partition=split, seed=args.seed)


def bank_alone(data: pt.FederatedData) -> tuple[pt.Task, pt.FederatedData]:
    """What the bank could learn from its own columns, and test customers as the bank knows them."""
    own = data.train[BANK]
    test = pt.Rows(data.test.inputs[:, : own.inputs.shape[1]], data.test.targets)
    name = f"{data.name}, the bank's columns"
    known = pt.FederatedData(train={BANK: own}, test=test, name=name)
    return pt.Task(model=pt.data.LogisticRegression(own.inputs.shape[1], 2), name=name), known


def party(rank: int | None) -> tuple[pt.Task, pt.Rows | None, pt.Rows]:
    """For `privtrain party`: the bank is rank 0, the shop 1, the dealer brings no customers."""
    task, data = load(Args())
    return task, None if rank is None else data.train[data.parties[rank]], data.test


def ways(args: Args) -> dict[str, Any]:
    """What both of them can train together, by name; `pooled` has the steps of `on shares`."""
    size, rate, engine = args.batch_size, 2.0, ENGINES[args.engine]
    shared = pt.MPCSGD(epochs=args.epochs, batch_size=size, learning_rate=rate, engine=engine)
    noised = pt.DPSGD(epochs=20, expected_batch=2 * size, learning_rate=rate)
    return {POOLED: shared.plaintext_twin(), NOISED: noised, SHARED: shared}


def compare(args: Args) -> pt.Comparison:
    """The bank alone, and both together in three ways, as one table."""
    task, data = load(args)
    made, where = ways(args), pt.Runtimes(mesh=MESHES[args.mesh])
    run = partial(pt.compare, attacks=[pt.LossThreshold()], delta=args.delta, runtimes=where)
    joint = run(made, task, data, seeds=[args.seed], epsilons=[args.epsilon], baseline=POOLED)
    single = run({ALONE: made[POOLED]}, *bank_alone(data), seeds=[args.seed])
    alone = tuple(replace(row, baseline=POOLED) for row in single.rows)  # else it has none
    return replace(joint, rows=(joint.rows[0], *alone, *joint.rows[1:]))


def reading(comparison: pt.Comparison) -> str:
    """What the table says, and what each role read on shares."""
    if failed := [row.label for row in comparison.rows if row.error is not None]:
        return f"Failed, see the table: {', '.join(failed)}."
    scores = {row.label: row.accuracy or 0.0 for row in comparison.rows}
    statements = [row.statement for row in comparison.rows if row.label == SHARED]
    who = {"computing-0": f"{BANK} (computing-0)", "computing-1": f"{SHOP} (computing-1)"}
    read = [each for statement in statements if statement for each in statement.input_privacy]
    lines = [f"  {who.get(each.reader, each.reader)}: {each.reads}" for each in read]
    return (
        f"The bank alone reaches {scores[ALONE]:.1%}, with the shop {scores[SHARED]:.1%} on shares "
        f"and {scores[POOLED]:.1%} pooled. Only DP promises anything about the model.\n"
        "Who read what on shares, beside its own columns:\n" + "\n".join(lines)
    )


def main(args: Args) -> pt.Comparison | None:
    """Compares, prints the table and how to read it, and writes the report."""
    torch.set_num_threads(1)  # the models are small: more threads only wait for each other
    if args.cheat:
        lie.tell(ENGINES, ways(args)[SHARED], *load(args), args.seed, MESHES[args.mesh])
        return None
    if args.out is not None and (args.out / "comparison.json").exists() and not args.force:
        raise pt.DataError(f"Expected out={str(args.out)!r} to be empty; --force overwrites it.")
    comparison = compare(args)
    print(f"{comparison}\n\n{reading(comparison)}\n{ENGINES[args.engine].caveats[0]}")
    if args.out is not None:
        print(f"The report lies in {pt.save(comparison, args.out, force=args.force)}/report.html")
    return comparison


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except (OSError, ValueError, pt.PrivtrainError) as error:
        raise SystemExit(f"bank_and_shop.py: {error}") from None
