"""What each component of a step takes of one of the two that run it: the device, or the host that issues its calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from tiercast_profiles.graph_buckets import bucket_for
from tiercast_profiles.hardware import VERIFY_TOKENS, Component
from tiercast_sim.compute_table import TableTimes
from tiercast_sim.roofline import Roofline
from tiercast_sim.settling import SettlingShares

Amount = TypeVar("Amount", float, npt.NDArray[np.float64])


class Lane:
    """Times of components: from a table those of ``measured``, from the roofline the others.

    The lane of the host has no roofline: what was not timed apart takes it nothing.
    """

    def __init__(
        self, table: TableTimes | None, measured: frozenset[Component], roofline: Roofline | None = None
    ) -> None:
        self._table, self._measured, self.roofline = table, measured, roofline
        self._verifies = table is not None and table.has("attention_verify")
        self._linear_ns: dict[tuple[int, bool], float] = {}
        self._by_tokens: dict[tuple[Component, int], float] = {}

    def table_of(self, component: Component) -> TableTimes | None:
        """The measured table that serves a component, or None where it does not."""
        return self._table if component in self._measured else None

    def linear_ns(self, num_tokens: int, *, is_late: bool) -> float:
        """One decoder layer without attention; ``is_late``: behind the prefill layers."""
        key = (num_tokens, is_late)
        known = self._linear_ns.get(key)
        if known is None:
            table = self.table_of("linear")
            if table is not None:
                known = table.time_ns("linear", num_tokens)
            else:
                known = 0.0 if self.roofline is None else self.roofline.linear_ns(num_tokens, is_late=is_late)
            self._linear_ns[key] = known
        return known

    def attention_decode_ns(self, positions: list[int], tokens_per_sequence: int) -> float:
        """Attention of one layer for sequences that feed tokens at these positions."""
        if not positions:
            return 0.0
        table = self.table_of("attention_decode")
        if table is None:
            return 0.0 if self.roofline is None else self.roofline.attention_decode_ns(positions, tokens_per_sequence)
        is_padded = table.table.context_statistic == "max"
        context = 1 + (max(positions) if is_padded else sum(positions) / len(positions))
        if tokens_per_sequence > 1:
            return self._verify_ns(table, positions, context + tokens_per_sequence - 1, tokens_per_sequence)
        return table.time_ns("attention_decode", len(positions), context)

    def attention_of_sums_ns(self, num_sequences: int, position_sum: int, window_sum: int) -> float:
        """The same of one token a sequence, from the sums of the positions: whole, and cut at the window − 1.

        A table that follows the longest context has no use for sums.
        """
        table = self.table_of("attention_decode")
        if table is not None:
            return table.time_ns("attention_decode", num_sequences, 1 + position_sum / num_sequences)
        return 0.0 if self.roofline is None else self.roofline.attention_of_sum_ns(window_sum + num_sequences)

    def _verify_ns(self, table: TableTimes, positions: list[int], end: float, tokens_per_sequence: int) -> float:
        """Attention of sequences that feed drafts, the last of which sees ``end`` tokens.

        Keys and values are read once and arithmetic grows by the token (A15): linear through what was measured for
        one token and for ``VERIFY_TOKENS``, else the time of one token in proportion to the roofline; the host's calls
        are then those of one token.
        """
        one_ns = table.time_ns("attention_decode", len(positions), end)
        if not self._verifies:
            if self.roofline is None:
                return one_ns
            several, one = (self.roofline.attention_decode_ns(positions, n) for n in (tokens_per_sequence, 1))
            return one_ns * several / one
        several_ns = table.time_ns("attention_verify", len(positions), end)
        share = (tokens_per_sequence - 1) / (VERIFY_TOKENS - 1)
        return max(0.0, one_ns + (several_ns - one_ns) * share)

    def attention_prefill_ns(self, num_tokens: int, start: int) -> float:
        """Attention of one layer for a chunk of a prompt behind ``start`` earlier tokens."""
        table = self.table_of("attention_prefill")
        if table is not None:
            return table.time_ns("attention_prefill", num_tokens, start)
        return 0.0 if self.roofline is None else self.roofline.attention_prefill_ns(num_tokens, start)

    def tokenwise_ns(self, component: Component, count: int) -> float:
        """A component whose time depends on a count alone."""
        key = (component, count)
        known = self._by_tokens.get(key)
        if known is None:
            table = self.table_of(component)
            known = self._roofline_ns(component, count) if table is None else table.time_ns(component, count)
            self._by_tokens[key] = known
        return known

    def more_chunks_ns(self, num_more: int) -> float:
        """What an Engram layer takes more for chunks of prompts beside what the step's tokens say.

        Assumption A104: each takes the same, whatever its size: launches of its own. A step that only decodes, or has a
        single chunk, is what was timed; every chunk behind the first, or beside decoding sequences, comes on top.
        """
        if num_more < 1 or self.table_of("engram_chunk") is None:
            return 0.0
        return num_more * self.tokenwise_ns("engram_chunk", 1)

    def _roofline_ns(self, component: Component, count: int) -> float:
        roofline = self.roofline
        if roofline is None:
            return 0.0
        if component == "step_overhead":
            return roofline.step_overhead_ns()
        if component in ("hash", "lookup_issue"):
            return roofline.launch_ns()
        if component == "embed":
            return roofline.embed_ns(count)
        if component == "head":
            return roofline.head_ns(count)
        assert component == "engram_module", component
        return roofline.engram_module_ns(count)


@dataclass(frozen=True, slots=True)
class Lanes:
    """How steps of one kind are priced; ``host`` is None where the device's times are all there is.

    ``sizes`` are those at which graphs were captured; none where steps of this kind are single calls.
    """

    device: Lane
    host: Lane | None
    settling: SettlingShares | None
    sizes: tuple[int, ...] = ()

    def num_rows(self, count: int) -> int:
        """Rows that really run for a batch of ``count``.

        Assumption A103: a captured batch is padded to the next size there is a graph of.
        """
        return bucket_for(count, self.sizes) or count

    @property
    def needs_longest(self) -> bool:
        """True where attention follows the longest context of a batch, as a measured table of padded batches says."""
        table = self.device.table_of("attention_decode")
        return table is not None and table.table.context_statistic == "max"


def segments_of(
    layers: Sequence[tuple[int, int]],
    early_ns: Amount,
    late_ns: Amount,
    module_ns: Amount,
    ends_ns: tuple[Amount, Amount],
) -> list[Amount]:
    """What the segments of a step, or of a column of steps, hold in one lane.

    ``layers`` are those of each segment that prefill runs, and those behind them, each of which takes ``early_ns`` and
    ``late_ns``; ``ends_ns`` are the embedding, which begins the first segment, and the head, which ends the last.
    """
    segments = [
        num_early * early_ns + num_late * late_ns + (module_ns if index else 0.0)
        for index, (num_early, num_late) in enumerate(layers)
    ]
    embed_ns, head_ns = ends_ns
    segments[0] = segments[0] + embed_ns
    segments[-1] = segments[-1] + head_ns
    return segments


def behind_launches(device_ns: Sequence[float], host_ns: Sequence[float], head_ns: float) -> list[float]:
    """Lengths of a step's segments whose calls the host issues while the device works.

    Assumption A102: both begin together and neither waits inside a segment, so that a segment is over when the device
    has done its work behind the one before, and not before the host has issued its last call. The last call is the
    head, which the device begins when it is issued: its ``head_ns`` come behind. A step that waits for rows gives the
    host no lead.
    """
    segments = []
    end_ns = issued_ns = 0.0
    for number, (work_ns, calls_ns) in enumerate(zip(device_ns, host_ns, strict=True), start=1):
        issued_ns += calls_ns
        done_ns = issued_ns + head_ns if number == len(device_ns) else issued_ns
        segment_ns = max(work_ns, done_ns - end_ns)
        end_ns += segment_ns
        segments.append(segment_ns)
    return segments
