"""How long one step takes, from the sums of its batch alone: the clock of a plan whose requests arrive by time.

Whole numbers and one step at a time, where ``step_pricing`` has columns: what both say of a run must be the same, and
``fast_serving`` asserts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tiercast_profiles.scenario import Prefetch
from tiercast_sim.compute import ComputeModel
from tiercast_sim.count_prices import ComputePrices
from tiercast_sim.interference_columns import interfering_step
from tiercast_sim.lanes import Lane, Lanes, behind_launches, segments_of
from tiercast_sim.lookup_prices import LookupPrices
from tiercast_sim.maxplus import Carry, StepTimes, step


@dataclass(frozen=True, slots=True)
class Fixed:
    """What one lane of a step takes by its counts alone, in ns."""

    linear: float
    late_linear: float
    module: float
    embed: float
    head: float


class StepClock:
    """Lengths of steps on one replica at one bound."""

    def __init__(
        self,
        prices: ComputePrices,
        lookups: LookupPrices | None,
        prefetch: Prefetch,
        *,
        is_device_path: bool,
        compute_speed: int | None,
    ) -> None:
        self._compute: ComputeModel = prices.compute
        self._lookups = lookups
        self._prefetch: Prefetch = prefetch
        self._is_device_path, self._compute_speed = is_device_path, compute_speed
        self._fixed: dict[tuple[bool, int, int, int], tuple[float, Fixed, Fixed | None]] = {}

    def duration_ns(
        self, num_decodes: int, sums: tuple[int, int], chunks: Sequence[tuple[int, int]], ended: Sequence[int]
    ) -> int:
        """Length of a step.

        ``sums`` are those of the positions that decoding sequences feed, and of the same cut at the attention window
        − 1; ``chunks`` are tokens of prompts and tokens before them; ``ended`` the last positions of prompts that end.
        """
        num_tokens = num_decodes + sum(tokens for tokens, _ in chunks)
        lanes = self._compute.lanes_of(num_decodes, has_chunks=bool(chunks))
        key = (bool(chunks), num_tokens, num_decodes + len(ended), num_decodes + len(chunks))
        fixed = self._fixed.get(key)
        if fixed is None:
            fixed = self._fixed[key] = self._fixed_of(lanes, *key[1:])
        pre, of_device, of_host = fixed
        segments = self._segments(lanes.device, of_device, (num_decodes, *sums), chunks, ended)
        if lanes.host is not None and of_host is not None:
            calls = self._segments(lanes.host, of_host, (num_decodes, *sums), chunks, ended)
            segments = behind_launches(segments, calls, of_device.head)
        return self._meet(round(pre), [round(segment) for segment in segments], num_tokens)

    def _segments(
        self,
        lane: Lane,
        fixed: Fixed,
        sums: tuple[int, int, int],
        chunks: Sequence[tuple[int, int]],
        ended: Sequence[int],
    ) -> list[float]:
        """One lane; ``sums`` are the decoding sequences, and both sums of their positions."""
        compute = self._compute
        decode = lane.attention_of_sums_ns(*sums) if sums[0] else 0.0
        early, late = fixed.linear + decode, 0.0
        for tokens, start in chunks:
            early += lane.attention_prefill_ns(tokens, start)
        if compute.has_late_layers:
            late = fixed.late_linear + decode + lane.attention_decode_ns(list(ended), 1)
        module = fixed.module
        if compute.has_engram:
            module += lane.more_chunks_ns(len(chunks) - (not sums[0]))
        return segments_of(compute.layers_by_segment, early, late, module, (fixed.embed, fixed.head))

    def _meet(self, pre_ns: int, segments_ns: list[int], num_tokens: int) -> int:
        num_layers = len(segments_ns) - 1
        if self._lookups is None or num_layers == 0:
            return pre_ns + sum(segments_ns)
        first, rest = self._lookups.prices(num_tokens)
        lookups = (first, *([rest] * (num_layers - 1)))
        if self._is_device_path:
            return pre_ns + sum(segments_ns) + sum(numbers[0] for numbers in lookups)
        segments_ns = [segments_ns[0], *(ns + found[6] for ns, found in zip(segments_ns[1:], lookups, strict=True))]
        if self._compute_speed is not None:
            timed = [(*numbers[:3], numbers[7]) for numbers in lookups]
            return interfering_step(pre_ns, segments_ns, timed, self._compute_speed)
        times = StepTimes(pre_ns, tuple(segments_ns), tuple(numbers[3] + numbers[7] for numbers in lookups))
        return step(times, self._prefetch, Carry())[0].now_ns

    def _fixed_of(
        self, lanes: Lanes, num_tokens: int, num_samples: int, num_sequences: int
    ) -> tuple[float, Fixed, Fixed | None]:
        compute = self._compute
        overhead, hash_ns, issue = compute.before_ns(lanes, num_tokens, num_sequences)[1]
        rows, sampled = lanes.num_rows(num_tokens), lanes.num_rows(num_samples)

        def of(lane: Lane, over_ranks: float) -> Fixed:
            return Fixed(
                linear=lane.linear_ns(rows, is_late=False),
                late_linear=lane.linear_ns(sampled, is_late=True) if compute.has_late_layers else 0.0,
                module=lane.tokenwise_ns("engram_module", rows) + over_ranks if compute.has_engram else 0.0,
                embed=lane.tokenwise_ns("embed", rows),
                head=lane.tokenwise_ns("head", sampled),
            )

        over_ranks = compute.over_ranks_ns(num_tokens) if compute.has_engram else 0.0
        host = None if lanes.host is None else of(lanes.host, 0.0)
        return overhead + (hash_ns + issue), of(lanes.device, over_ranks), host
