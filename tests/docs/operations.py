"""Tables of operations on shares, from the result that `benchmarks/mpc_ops.py` keeps."""

import runpy
from collections.abc import Iterable
from typing import Any

from privtrain.report import cells
from tests.docs.pages import CHECKOUT

Values = dict[str, Any]
"""What JSON can hold."""

NETWORKS = runpy.run_path(str(CHECKOUT / "benchmarks" / "on_shares" / "network.py"))["NETWORKS"]
OPERATIONS = {
    "matmul-256": "matrix product of 256 x 256",
    "mul-10000": "product of 10,000 values",
    "relu-10000": "`relu` of 10,000 values",
    "softmax-1000x10": "`softmax` of 1,000 rows of 10",
    "logistic-step, 30 features, B 64": "logistic step, 30 features, batch 64",
    "mlp-step 64-32-10, B 128": "MLP step 64-32-10, batch 128",
}
HELD_AGAINST = (
    *(("online", "crypten"), ("total", "crypten"), ("online", "crypten-stock tfp")),
    *(("total", "crypten-stock ttp"), ("online", "spu semi2k"), ("total", "spu semi2k")),
)

AUTHENTICATED_AGAINST = (
    *(("online", "crypten"), ("total", "crypten"), ("online", "crypten-stock tfp")),
    *(("total", "crypten-stock ttp"), ("online", "ring64 online"), ("total", "ring64 total")),
)


def by_sides(figures: Values) -> dict[tuple[str, str, str], Values]:
    return {(row["work"], row["ours"], row["against"]): row for row in figures["rows"]}


def ops_lines(figures: Values) -> Iterable[str]:
    """Ratios; a column for each side and a last one for more parties, where there are rows."""
    rows = by_sides(figures)
    measured = {key[1:] for key in rows}
    sides = [pair for pair in HELD_AGAINST if (f"ring64 {pair[0]}", pair[1]) in measured]
    parties = sorted({row.get("parties", 2) for row in rows.values()} - {2})
    titles = [f"{kind} / {against}" for kind, against in sides]
    if parties:
        titles.append(f"online, {', '.join(map(str, parties))} parties / 2")
    yield f"| operation | {' | '.join(titles)} |"
    yield f"|{'---|' * (len(titles) + 1)}"
    for work, said in OPERATIONS.items():
        cells_of = [said]
        for kind, against in sides:
            cells_of.append(ratio(rows[work, f"ring64 {kind}", against]))
        if parties:
            more = [
                rows[f"{work}, {count} parties", "ring64 online", "ring64 online, 2 parties"]
                for count in parties
            ]
            cells_of.append(", ".join(f"{row['ratio_median']:.2g}" for row in more))
        yield f"| {' | '.join(cells_of)} |"


def ratio(row: Values) -> str:
    """Its median and spread."""
    return f"{row['ratio_median']:.2g} ({row['ratio_min']:.2g} to {row['ratio_max']:.2g})"


def authenticated_lines(figures: Values) -> Iterable[str]:
    """Ratios and material of `spdz2k`, of the operations that have rows of it."""
    rows = by_sides(figures)
    titles = [
        f"{kind} / {against.split()[0] if 'ring64' in against else against}"
        for kind, against in AUTHENTICATED_AGAINST
    ]
    yield f"| operation | {' | '.join(titles)} | material, to one party and to both |"
    yield f"|{'---|' * (len(titles) + 2)}"
    for work, said in OPERATIONS.items():
        keys = [(work, f"spdz2k {kind}", against) for kind, against in AUTHENTICATED_AGAINST]
        if all(key in rows for key in keys):
            ratios = [ratio(rows[key]) for key in keys]
            first = rows[keys[0]]
            sizes = (cells.size(first[f"{name}_bytes"]) for name in ("material", "all_material"))
            yield f"| {' | '.join([said, *ratios, ', '.join(sizes)])} |"


def network_lines(figures: Values) -> Iterable[str]:
    """Rounds, bytes and projections of our engines, and of each side whose rounds were counted."""
    rows = by_sides(figures)
    columns = "rounds | sent | material | LAN, ms | dealing, too | WAN, ms | dealing, too"
    yield f"| operation | | {columns} |"
    yield f"|{'---|' * 9}"
    for work, said in OPERATIONS.items():
        totals = [row for key, row in rows.items() if key[:2] == (work, "ring64 total")]
        costs = {"`ring64`": (totals[0], "")}
        ours = [row for key, row in rows.items() if key[:2] == (work, "spdz2k total")]
        if ours:
            costs["`spdz2k`"] = ours[0], ""
        costs |= {row["against"]: (row, "against_") for row in totals if "against_rounds" in row}
        for side, (row, prefix) in costs.items():
            rounds, sent, material = (
                row[f"{prefix}{name}"] for name in ("rounds", "bytes_sent", "material_bytes")
            )
            # All others deal while they compute.
            online = sent + (material if prefix else 0)
            times = [
                NETWORKS[name].milliseconds(rounds, moved)
                for name in ("lan", "wan")
                for moved in (online, sent + material)
            ]
            sizes = f"{cells.size(sent)} | {cells.size(material)}".replace("0 B", "0")
            title = said if side == "`ring64`" else ""
            seconds = " | ".join(f"{each:,.1f}" if each < 100 else f"{each:,.0f}" for each in times)
            yield f"| {title} | {side} | {rounds} | {sizes} | {seconds} |"
