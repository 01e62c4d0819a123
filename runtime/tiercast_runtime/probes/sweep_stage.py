"""Which ways to gather this host is swept in, one after the other, and what could not be swept and why."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tiercast_profiles.errors import BadInput, MissingCapability
from tiercast_profiles.gather import GatherSweep
from tiercast_profiles.hardware import ProbeResult
from tiercast_profiles.model import ModelSpec
from tiercast_runtime.device import num_cores
from tiercast_runtime.probes.kept_memory import KeptMemory
from tiercast_runtime.probes.partial import PartialSweeps
from tiercast_runtime.probes.sweep_grid import Arm, SweepPlan
from tiercast_runtime.probes.sweep_host import placed_block, sweep_host
from tiercast_runtime.probes.sweep_ids import RowSource, text_rows
from tiercast_runtime.probes.timing import Effort, not_measured

Swept = GatherSweep | ProbeResult


@dataclass(frozen=True, slots=True)
class SweepStage:
    """Grid and effort of the sweeps; ``is_quick`` leaves out 1 GiB pages, remote memory and several threads."""

    plan: SweepPlan
    effort: Effort
    is_quick: bool

    def arms(self) -> list[Arm]:
        """Ways to gather, those that share a block next to each other; the first is swept over all payloads."""
        arms = [Arm("thp"), Arm("thp", "sorted"), Arm("thp", "text")]
        if not self.is_quick and num_cores() > 1:
            arms.append(Arm("thp", num_threads=num_cores()))
        arms.append(Arm("4k"))
        if not self.is_quick:
            arms += [Arm("1g"), Arm("thp", is_remote=True)]
        return arms


def sweep_arms(
    stage: SweepStage,
    model: ModelSpec,
    memory_bytes: int,
    progress: Callable[[float], None],
    partial: PartialSweeps | None = None,
    *,
    memory: KeptMemory | None = None,
) -> Iterator[Swept]:
    """Every arm's sweep, or the probe that says why there is none.

    Args:
        stage: what to sweep.
        model: whose rows the text order asks for.
        memory_bytes: most a block may take; one is given back before the next, unless ``memory`` keeps it.
        progress: called with the share done.
        partial: holds sweeps of an interrupted run, which are not repeated, and takes each new one.
        memory: lends the blocks.

    Raises:
        WrongRows: a gather delivered wrong bytes.
    """
    arms = stage.arms()
    footprints = stage.plan.footprints(memory_bytes)
    if not footprints:
        reason = f"the smallest table of the sweep takes {stage.plan.min_footprint_bytes} bytes; {memory_bytes} allowed"
        yield not_measured("gather.cpu_gather", reason)
        return
    done = 0
    for (pages, is_remote), group in groupby(arms, key=lambda arm: (arm.pages, arm.is_remote)):
        same = []
        for arm in group:
            held = None if partial is None else partial.get(arm.label)
            if held is None:
                same.append(arm)
            else:
                done += 1
                yield held
        if not same:
            continue
        try:
            with placed_block(footprints[-1], same[0], memory) as block:
                for arm in same:
                    progress(done / len(arms))
                    done += 1
                    try:
                        source = RowSource(arm.order, text_rows(model) if arm.order == "text" else None)
                    except (MissingCapability, BadInput) as error:
                        yield not_measured(f"gather.cpu_gather.{arm.pages}.{arm.order}", str(error))
                        continue
                    sweep = sweep_host(block, arm, stage.plan, stage.effort, source, is_full=arm == arms[0])
                    if partial is not None:
                        partial.add(sweep)
                    yield sweep
        except MissingCapability as error:
            place = "remote" if is_remote else "local"
            yield not_measured(f"gather.cpu_gather.{pages}.random.{place}", str(error))
            done += len(same)


def split_swept(swept: Sequence[Swept]) -> tuple[tuple[GatherSweep, ...], tuple[ProbeResult, ...]]:
    """Sweeps and reasons apart."""
    sweeps = tuple(one for one in swept if isinstance(one, GatherSweep))
    return sweeps, tuple(one for one in swept if isinstance(one, ProbeResult))
