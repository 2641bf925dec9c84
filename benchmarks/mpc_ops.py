"""Operations on secret shares: `ring64` with its dealer, against CrypTen and SPU.

    python benchmarks/mpc_ops.py [--spu PYTHON] [--quick] [--json]

`ring64` and what it is held against do the same work in turn, on loopback, each party a process
with one thread, from shared operands to shared results, which are compared with float64. See
`SIDES` for what the seconds of each side include. `PYTHON` is the interpreter of an environment
with `spu==0.9.5`; without it there are no rows of SPU. Two parties, and three to five of `ring64`:
one process each, which share the processors of this machine, whatever their number.

Rounds are messages in sequence between computing parties, bytes those that rank 0 sends, without
headers; material is what a dealer sends. `lan` and `wan` are projections: rounds x latency + bytes
/ bandwidth (for totals, and where dealing is within the seconds, of material, too), no computing.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from harness import Report, Row, from_seconds, main

# The files of this folder run as scripts from a checkout that need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
    material,
)
from on_shares.stock import CrypTenStock, third_party
from on_shares.works import Work, works

from privtrain.core.runtime import Party, Payload, link_of
from privtrain.mpc.engine import with_helpers
from privtrain.mpc.ring64.engine import Ring64
from privtrain.mpc.ring64.streamed import DEALER
from privtrain.runtimes.processes.mesh import Processes

SIDES = {
    "ring64 online": "from the moment when all that is dealt has arrived; links are mutual TLS 1.3",
    "ring64 total": "dealing in a process of its own, then online, one after the other",
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
        """By work and side: "total" and "online" seconds, `(repeats,)`, and "counts", `(3,)`."""
        link = link_of(party)
        measured: Payload = {}
        with ExitStack() as stack:
            session = stack.enter_context(Ring64().open(party))
            sides: list[Side] = [Ring64Side(session, link, len(link.names) - 1)]
            for opponent in self.opponents:
                sides += stack.enter_context(opponent.open(party))
            for work in works(self.quick):
                measured |= self._work(sides, work, deals=session.deals)
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
                if not deals and repeat in (0, self.repeats):
                    forms[side.name].check(side.opened(), side.error, side.name)
                    costs[side.name] = side.cost()
        measured: Payload = {}
        for name, pairs in seconds.items():
            totals, onlines = torch.tensor(pairs).unbind(1)
            measured |= {f"{work.name}/{name}/total": totals, f"{work.name}/{name}/online": onlines}
        for name, cost in costs.items():
            counts = torch.tensor([cost.rounds, cost.sent, cost.material])
            measured[f"{work.name}/{name}/counts"] = counts
        return measured


def in_one_mesh(parties: int, opponents: tuple[Opponent, ...], quick: bool) -> list[Row]:
    """All works: two rows for each of them and each side that `ring64` is held against."""
    repeats = 5 if quick else 31
    names = tuple(f"computing-{number}" for number in range(parties))
    programs = with_helpers(Ring64(), dict.fromkeys(names, Measure(quick, repeats, opponents)))
    replies = Processes(timeout=120).run(programs, {})
    entries = list(replies[DEALER].entries)
    measured: dict[str, dict[str, dict[str, list[float]]]] = {}
    for key, values in replies[names[0]].payload.items():
        work, side, what = key.split("/")
        measured.setdefault(work, {}).setdefault(side, {})[what] = values.tolist()
    table = []
    for number, (work, sides) in enumerate(measured.items()):
        place = number * (repeats + 1)
        dealt = {OURS: material(entries, parties)[place]}
        if BESIDE in sides:
            dealt[BESIDE] = material(entries, 2)[place]
        title = work if parties == 2 else f"{work}, {parties} parties"
        for name in sides:
            if name != OURS:
                table += [row | {"parties": parties} for row in two_rows(title, sides, name, dealt)]
    return table


def two_rows(
    title: str,
    sides: Mapping[str, Mapping[str, list[float]]],
    name: str,
    dealt: Mapping[str, int],
) -> list[Row]:
    """Online and total of ours against one other side.

    Args:
        title: What is done.
        sides: Side to its "online" and "total" seconds and its "counts".
        name: The other side.
        dealt: Side to its bytes of material, where dealing is apart from its online seconds.
    """
    table = []
    for kind in ("online", "total"):
        ours, theirs = sides[OURS][kind], sides[name][kind]
        row = from_seconds(
            title,
            ours,
            theirs,
            ours_name=f"{OURS} {kind}",
            against_name=name.replace(OURS, f"{OURS} {kind}"),
        )
        row |= {"ours_min_ms": 1e3 * min(ours), "against_min_ms": 1e3 * min(theirs)}
        for side, prefix in ((OURS, ""), (name, "against_")):
            rounds, sent, within = map(int, sides[side]["counts"])
            all_material = within + dealt.get(side, 0)
            row[f"{prefix}rounds"], row[f"{prefix}bytes_sent"] = rounds, sent
            row[f"{prefix}material_bytes"] = all_material
            moved = sent + (within if kind == "online" else all_material)
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
    table = in_one_mesh(2, (CrypTenEngine(),), quick)
    with socket.create_server(("127.0.0.1", 0)) as place:
        port: int = place.getsockname()[1]
    with third_party(port):
        table += in_one_mesh(2, (CrypTenStock(port),), quick)
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
