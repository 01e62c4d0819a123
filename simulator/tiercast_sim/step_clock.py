"""How long one step takes, from the sums of its batch alone: the clock of a plan whose requests arrive by time.

Whole numbers and one step at a time, where ``step_pricing`` has columns: what both say of a run must be the same, and
``fast_serving`` asserts it.
"""

from collections.abc import Sequence

from tiercast_profiles.scenario import Prefetch
from tiercast_sim.compute import ComputeModel
from tiercast_sim.compute_columns import ComputePrices
from tiercast_sim.interference_columns import interfering_step
from tiercast_sim.lookup_prices import LookupPrices
from tiercast_sim.maxplus import Carry, StepTimes, step

Fixed = tuple[float, float, float, float, float, float]


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
        self._table = self._compute.table_of("attention_decode")
        self._fixed: dict[tuple[int, int, int], Fixed] = {}

    def duration_ns(
        self, num_decodes: int, sums: tuple[int, int], chunks: Sequence[tuple[int, int]], ended: Sequence[int]
    ) -> int:
        """Length of a step.

        ``sums`` are those of the positions that decoding sequences feed, and of the same cut at the attention window
        − 1; ``chunks`` are tokens of prompts and tokens before them; ``ended`` the last positions of prompts that end.
        """
        compute = self._compute
        num_tokens = num_decodes + sum(tokens for tokens, _ in chunks)
        key = (num_tokens, num_decodes + len(ended), num_decodes + len(chunks))
        fixed = self._fixed.get(key)
        if fixed is None:
            fixed = self._fixed[key] = self._fixed_of(*key)
        pre, linear, late_linear, module, embed, head = fixed
        decode = self._attention_ns(num_decodes, sums) if num_decodes else 0.0
        early, late = linear + decode, 0.0
        for tokens, start in chunks:
            early += compute.attention_prefill_ns(tokens, start)
        if compute.has_late_layers:
            late = late_linear + decode + compute.attention_decode_ns(list(ended), 1)
        segments = [
            num_early * early + num_late * late + (module if index else 0.0)
            for index, (num_early, num_late) in enumerate(compute.layers_by_segment)
        ]
        segments[0] += embed
        segments[-1] += head
        return self._meet(round(pre), [round(segment) for segment in segments], num_tokens)

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
            return interfering_step(pre_ns, segments_ns, lookups, self._compute_speed)
        times = StepTimes(pre_ns, tuple(segments_ns), tuple(numbers[3] for numbers in lookups))
        return step(times, self._prefetch, Carry())[0].now_ns

    def _fixed_of(self, num_tokens: int, num_samples: int, num_sequences: int) -> Fixed:
        compute = self._compute
        pre = compute.tokenwise_ns("step_overhead", num_sequences)
        module = 0.0
        if compute.has_engram:
            pre += compute.tokenwise_ns("hash", num_tokens) + compute.issue_ns(num_tokens)
            module = compute.module_ns(num_tokens)
        late_linear = compute.linear_ns(num_samples, is_late=True) if compute.has_late_layers else 0.0
        linear, embed = compute.linear_ns(num_tokens, is_late=False), compute.tokenwise_ns("embed", num_tokens)
        return pre, linear, late_linear, module, embed, compute.tokenwise_ns("head", num_samples)

    def _attention_ns(self, num_decodes: int, sums: tuple[int, int]) -> float:
        positions, cut = sums
        if self._table is not None:
            return self._table.time_ns("attention_decode", num_decodes, 1 + positions / num_decodes)
        return self._compute.roofline.attention_of_sum_ns(cut + num_decodes)
