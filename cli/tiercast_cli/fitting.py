"""From the options of ``tiercast fit`` to its rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from tiercast_plan.checkpoint_sizes import is_checkpoint, model_of, read_sizes
from tiercast_plan.fit import REPLICATIONS, FitRow, fit_lower_bound, fit_matrix
from tiercast_profiles import store
from tiercast_profiles.errors import BadInput, InfeasibleScenario
from tiercast_profiles.hardware import TIERS
from tiercast_profiles.scenario import Engine
from tiercast_profiles.units import format_bytes

WordT = TypeVar("WordT", bound=str)


def matrix(
    *,
    model: str,
    hardware: Sequence[str] | None,
    tiers: str,
    replications: str,
    context_tokens: int,
    engine_limits: tuple[int, int],
) -> tuple[FitRow, ...]:
    """Rows for a model by name or file, or for a checkpoint by its headers.

    Raises:
        BadInput: a name or word is not known, or a file is not what it should be.
    """
    machines = [store.load_hardware(name) for name in hardware or store.shipped_names("hardware")]
    wanted_tiers = _words(tiers, "--tier", TIERS)
    wanted_copies = _words(replications, "--replication", REPLICATIONS)
    max_num_seqs, max_num_batched_tokens = engine_limits
    engine = Engine(max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)
    spec = None
    if is_checkpoint(Path(model)):
        sizes = read_sizes(Path(model))
        spec = model_of(Path(model), sizes)
        if spec is None:
            return fit_lower_bound(
                sizes,
                machines,
                tiers=wanted_tiers,
                replications=wanted_copies,
                memory_utilization_ratio=engine.memory_utilization_ratio,
            )
    return fit_matrix(
        store.load_model(model) if spec is None else spec,
        machines,
        store.load_prices("default"),
        tiers=wanted_tiers,
        replications=wanted_copies,
        context_tokens=context_tokens,
        engine=engine,
    )


def check_any_fits(rows: Sequence[FitRow]) -> None:
    """Refuse to call it done when nothing fits.

    Raises:
        InfeasibleScenario: with the smallest shortfall, or the reason where no tier is there.
    """
    if any(row.fits for row in rows):
        return
    short = [row for row in rows if row.shortfall_bytes] or list(rows)
    nearest = min(short, key=lambda row: row.shortfall_bytes)
    missing = f", short of {format_bytes(nearest.shortfall_bytes)}" if nearest.shortfall_bytes else ""
    raise InfeasibleScenario(
        f"nothing fits; nearest: {nearest.hardware} TP{nearest.tensor}, tables in {nearest.tier}{missing}: "
        f"{nearest.reason}",
        nearest.shortfall_bytes,
    )


def _words(text: str, option: str, allowed: Sequence[WordT]) -> tuple[WordT, ...]:
    given = [part.strip() for part in text.split(",")]
    wrong = [part for part in given if part not in allowed]
    if wrong:
        raise BadInput(f"{option} {text!r}: {wrong[0]!r} is not one of {', '.join(allowed)}")
    return tuple(word for word in allowed if word in given)
