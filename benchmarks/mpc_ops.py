"""Operations on secret shares: `ring64` and `spdz2k` with their dealer, against CrypTen and SPU.

    python benchmarks/mpc_ops.py [--spu PYTHON] [--quick] [--json]

These engines and what they are held against do the same work in turn, on loopback, each party a
process with one thread, from shared operands to shared results, which are compared with float64.
See `SIDES` for what the seconds of each side include. `PYTHON` is the interpreter of an environment
with `spu==0.9.5`; without it there are no rows of SPU. Two parties, and three to five of `ring64`:
one process each, which share the processors of this machine, whatever their number.

Rounds are messages in sequence between computing parties, bytes those that rank 0 sends, without
headers; material is what a dealer sends to the party that gets most of it, `all_material_bytes`
what it sends to all. `lan` and `wan` are projections: rounds x latency + bytes
/ bandwidth (for totals, and where dealing is within the seconds, of material, too), no computing.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch
from harness import Report, Row, from_seconds, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from on_shares.authenticated import AUTHENTICATED, Authenticated
from on_shares.network import NETWORKS
from on_shares.semi2k import Spu, versions
from on_shares.sides import (
    BESIDE,
    OURS,
    Cost,
    CrypTenEngine,
    Opponent,
    Ring64Side,
    Side,
    TwoParties,
)
from on_shares.stock import CrypTenStock, third_party
from on_shares.works import Work, works

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.engine import with_helpers
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.wires import DealerWires
from privtrain.runtimes.processes.mesh import Processes

SIDES = {
    "ring64 online": "from the moment when all that is dealt has arrived; links are mutual TLS 1.3",
    "ring64 total": "dealing in a process of its own, then online, one after the other",
    "spdz2k online": "as of ring64, with the check of all that was opened; no operand was opened "
    "before",
    "spdz2k total": "as of ring64",
    "crypten": "this project's CrypTen engine, checks on, gloo in the clear: rank 0 deals within "
    "the seconds and sends nothing for it; two classes in place of a sigmoid",
    "crypten-stock tfp": "CrypTen 0.4.1 as it comes, gloo in the clear: rank 0 deals within the "
    "seconds and sends nothing for it",
    "crypten-stock ttp": "CrypTen 0.4.1 as it comes, gloo in the clear: a third process deals "
    "within the seconds, asked for each triple; its sendings are material",
    "spu semi2k": "SPU, FM64, 16 fraction bits, brpc in the clear: rank 0 deals within the seconds "
    "and sends nothing for it; compiled and shared before; rounds are messages that were sent",
    "ring64, 2 parties": "the same as ours, among two of the parties",
}
EXTRAS: Report = {
    "sides": SIDES,
    "projection": {name: asdict(network) for name, network in NETWORKS.items()},
}


DEALT_APART = (OURS, BESIDE, AUTHENTICATED)
"""Sides whose online seconds begin when all is dealt."""


@dataclass(frozen=True)
class Measure:
    """Times works in turn; what rank 0 saw is reported.

    Args:
        quick: Whether works are small.
        repeats: Pairs of timings.
        opponents: What `ring64` is held against.
    """

    quick: bool
    repeats: int
    opponents: tuple[Opponent, ...]

    def __call__(self, inputs: Payload, party: Party) -> Payload:
        """By work and side: "total" and "online" seconds, `(repeats,)`, and "counts", `(4,)`."""
        link = link_of(party)
        measured: Payload = {}
        with ExitStack() as stack:
            session = stack.enter_context(Ring64().open(party))
            sides: list[Side] = [Ring64Side(session, link)]
            for opponent in self.opponents:
                sides += stack.enter_context(opponent.open(party))
            for work in works(self.quick):
                measured |= self._work(sides, work, deals=session.deals)
            if isinstance(session.wires, DealerWires):
                # Two sessions share this link, and the other one ends by a word of its own.
                session.wires.material.drain()
        return measured

    def _work(self, sides: Sequence[Side], work: Work, *, deals: bool) -> Payload:
        forms = {side.name: side.prepare(work) for side in sides}
        seconds: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
        costs: dict[str, Cost] = {}
        for repeat in range(self.repeats + 1):
            # Their order alternates; the first time is a warm-up.
            for side in sides if repeat % 2 else reversed(sides):
                took = side.run()
                if repeat:
                    seconds[side.name].append(took)
                # Again at the end: what a run did to its operands would show.
                if repeat in (0, self.repeats):
                    opened = side.opened()
                    if not deals:
                        forms[side.name].check(opened, side.error, side.name)
                    costs[side.name] = side.cost()
        measured: Payload = {}
        for name, pairs in seconds.items():
            totals, onlines = torch.tensor(pairs).unbind(1)
            measured |= {f"{work.name}/{name}/total": totals, f"{work.name}/{name}/online": onlines}
        for name, cost in costs.items():
            measured[f"{work.name}/{name}/counts"] = torch.tensor(astuple(cost))
        return measured


def in_one_mesh(parties: int, opponents: tuple[Opponent, ...], quick: bool) -> list[Row]:
    """All works: two rows for each of them and each pair of an engine and who it is held against.

    Of `spdz2k` against `ring64` they are in one mesh only, that of the CrypTen engine.
    """
    repeats = 5 if quick else 31
    names = tuple(f"computing-{number}" for number in range(parties))
    programs = with_helpers(Ring64(), dict.fromkeys(names, Measure(quick, repeats, opponents)))
    reply = Processes(timeout=120).run(programs, {})[names[0]]
    measured: dict[str, dict[str, dict[str, list[float]]]] = {}
    for key, values in reply.payload.items():
        work, side, what = key.split("/")
        measured.setdefault(work, {}).setdefault(side, {})[what] = values.tolist()
    table = []
    for work, sides in measured.items():
        title = work if parties == 2 else f"{work}, {parties} parties"
        others = [name for name in sides if name not in (OURS, AUTHENTICATED)]
        pairs = [(own, name) for own in (OURS, AUTHENTICATED) if own in sides for name in others]
        if AUTHENTICATED in sides and CrypTenEngine() in opponents:
            pairs.append((AUTHENTICATED, OURS))
        for pair in pairs:
            added = two_rows(title, sides, pair)
            table += [row | {"parties": parties} for row in added]
    return table


def two_rows(
    title: str,
    sides: Mapping[str, Mapping[str, list[float]]],
    pair: tuple[str, str],
) -> list[Row]:
    """Online and total of one side against another.

    Args:
        title: What is done.
        sides: Side to its "online" and "total" seconds and its "counts".
        pair: The side, and the other one.
    """
    table, (own, name) = list[Row](), pair
    for kind in ("online", "total"):
        ours, theirs = sides[own][kind], sides[name][kind]
        row = from_seconds(
            title,
            ours,
            theirs,
            ours_name=f"{own} {kind}",
            against_name=name.replace(OURS, f"{OURS} {kind}"),
        )
        row |= {"ours_min_ms": 1e3 * min(ours), "against_min_ms": 1e3 * min(theirs)}
        for side, prefix in ((own, ""), (name, "against_")):
            rounds, sent, material, all_material = map(int, sides[side]["counts"])
            row[f"{prefix}rounds"], row[f"{prefix}bytes_sent"] = rounds, sent
            row[f"{prefix}material_bytes"] = material
            row[f"{prefix}all_material_bytes"] = all_material
            apart = kind == "online" and side in DEALT_APART
            moved = sent + (0 if apart else material)
            for network, link in NETWORKS.items():
                key = f"{prefix or 'ours_'}{network}_projected_ms"
                row[key] = link.milliseconds(rounds, moved)
        table.append(row)
    return table


def rows(quick: bool, *, spu: str | None = None) -> list[Row]:
    """Two parties against everybody, then more of them; quickly no more than three."""
    # Other processes find the sides there.
    here = str(Path(__file__).resolve().parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    table = in_one_mesh(2, (Authenticated(), CrypTenEngine()), quick)
    with socket.create_server(("127.0.0.1", 0)) as place:
        port: int = place.getsockname()[1]
    with third_party(port):
        table += in_one_mesh(2, (Authenticated(), CrypTenStock(port)), quick)
    if spu is None:
        print(
            "No rows of SPU: give --spu PYTHON of an environment with spu==0.9.5.", file=sys.stderr
        )
    else:
        EXTRAS["spu_versions"] = versions(spu)
        table += in_one_mesh(2, (Spu(spu),), quick)
    table += in_one_mesh(3, (TwoParties(),) if quick else (TwoParties(), CrypTenEngine()), quick)
    for parties in () if quick else (4, 5):
        table += in_one_mesh(parties, (TwoParties(),), quick)
    return table


if __name__ == "__main__":
    main(
        rows,
        extras=EXTRAS,
        options={"spu": "the python of an environment with spu==0.9.5, for its rows"},
    )
