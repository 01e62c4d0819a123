"""The fit matrix on a terminal: machines and placements down, ranks per replica across."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tiercast_cli import render
from tiercast_profiles.units import GIB, format_bytes

if TYPE_CHECKING:
    from tiercast_plan.fit import FitRow


def show(rows: "Sequence[FitRow]") -> None:
    """What fits with its KV room, what does not with the bytes it is short of."""
    sizes = sorted({row.tensor for row in rows})
    lines: dict[tuple[str, str, str], dict[int, FitRow]] = {}
    for row in rows:
        lines.setdefault((row.hardware, row.tier, row.replication), {})[row.tensor] = row
    cells = [
        [
            hardware,
            tier if tier in ("hbm", "pool") else f"{tier} {replication}",
            *(_cell(found.get(size)) for size in sizes),
        ]
        for (hardware, tier, replication), found in lines.items()
    ]
    columns = ["machine", "tables", *(f"TP{size}" for size in sizes)]
    render.table("KV tokens of one replica where it fits; bytes short where not", columns, cells, left=2)
    if any(row.is_lower_bound for row in rows):
        render.line("from headers alone: room left per rank for KV, activations and replicated weights; a lower bound")
    absent = {row.reason for row in rows if not row.fits and not row.shortfall_bytes}
    for reason in sorted(absent):
        render.line(f"no tier: {reason}")
    _memory(rows)


def _cell(row: "FitRow | None") -> str:
    if row is None:
        return ""
    if row.fits:
        if row.kv_room_tokens is None:
            return f"{format_bytes(row.kv_room_bytes_per_rank)} left"
        return render.number(row.kv_room_tokens)
    return f"-{format_bytes(row.shortfall_bytes)}" if row.shortfall_bytes else "no tier"


def _memory(rows: "Sequence[FitRow]") -> None:
    """Every piece of the smallest size that fits, or of the largest that does not, for each machine and placement."""
    chosen: dict[tuple[str, str, str], FitRow] = {}
    for row in rows:
        if not row.hbm_bytes_per_rank:
            continue
        key = (row.hardware, row.tier, row.replication)
        if key not in chosen or not chosen[key].fits:
            chosen[key] = row
    cells = [
        [
            f"{row.hardware} TP{row.tensor}",
            row.tier if row.tier in ("hbm", "pool") else f"{row.tier} {row.replication}",
            _gib(_weights(row)),
            _gib(row.hbm_bytes_per_rank["tables"]),
            _gib(sum(row.hbm_bytes_per_rank.values())),
            _gib(row.hbm_usable_bytes_per_rank),
            _gib(sum(sum(pieces.values()) for pieces in row.host_bytes.values())),
        ]
        for row in chosen.values()
    ]
    columns = [
        "machine",
        "tables",
        "weights\n/rank",
        "tables\n/rank",
        "in all\n/rank",
        "usable\n/rank",
        "below HBM\n/host",
    ]
    render.table("GiB of the fewest ranks that fit, or of the most tried", columns, cells, left=2)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:,.1f}"


def _weights(row: "FitRow") -> int:
    return row.hbm_bytes_per_rank["weights"] + row.hbm_bytes_per_rank.get("replicated_weights", 0)
