"""What a run leaves behind: one sample per step and request, and the first steps as spans on a timeline.

Everything is appended to plain lists while the run lasts and turned into the record's schemas afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tiercast_profiles.record import RequestSamples, Samples, Span, StepSamples
from tiercast_profiles.workload import Request
from tiercast_runtime.prefetch import LookupTiming
from tiercast_runtime.scheduler import StepOutcome, StepPlan

MAX_SPAN_STEPS = 64


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Host clock readings of one step, ns: start, batch built, lookups issued, result known, bookkeeping done.

    ``windows_ns`` holds, per Engram layer, the time from the issue of the lookups to the need for the rows.
    """

    start_ns: int
    built_ns: int
    issued_ns: int
    computed_ns: int
    end_ns: int
    windows_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LayerStep:
    """One lookup of one Engram layer in a step that only decodes."""

    window_ns: int
    lookup_ns: int
    stall_ns: int
    num_rows_read: int


@dataclass(slots=True)
class Recorder:
    """Collects the samples of one run; times are given on the engine's clock and kept relative to ``origin_ns``.

    A lookup made ahead (``prev_step``) is counted in the step that waits for it; its bar lies where it ran. The rows a
    step asks for are those of its own tokens, whenever they were fetched.
    """

    origin_ns: int
    layer_ids: tuple[int, ...]
    rows_per_token: int
    has_cache: bool = False
    layers: list[list[LayerStep]] = field(init=False)
    overhead_ns: list[int] = field(default_factory=list)
    num_wasted_tokens: int = 0
    _steps: list[tuple[int, ...]] = field(default_factory=list)
    _spans: list[tuple[str, str, int, int]] = field(default_factory=list)
    _arrival_ns: dict[int, int] = field(default_factory=dict)
    _first_token_ns: dict[int, int] = field(default_factory=dict)
    _finish_ns: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = [[] for _ in self.layer_ids]

    @property
    def num_finished(self) -> int:
        """Requests that are done."""
        return len(self._finish_ns)

    @property
    def wasted_row_ratio(self) -> float:
        """Share of the rows asked for that tokens fed in vain took; 0 where there are no tables."""
        num_rows = sum(step[6] for step in self._steps)
        num_wasted = self.num_wasted_tokens * self.rows_per_token * len(self.layer_ids)
        return num_wasted / num_rows if num_rows else 0.0

    def arrived(self, request: Request, at_ns: int) -> None:
        """A request arrived (time relative to run start)."""
        self._arrival_ns[request.request_id] = at_ns

    def step(self, plan: StepPlan, times: StepTimes, lookups: Sequence[LookupTiming]) -> None:
        """A step ended."""
        num_prefill = plan.num_prefill_tokens
        self._steps.append(
            (
                times.start_ns - self.origin_ns,
                times.end_ns - times.start_ns,
                num_prefill,
                len(plan.decodes),
                sum(lookup.stall_ns for lookup in lookups),
                sum(lookup.ready_ns - lookup.started_ns for lookup in lookups),
                plan.num_tokens * self.rows_per_token * len(self.layer_ids),
                sum(lookup.num_rows_read for lookup in lookups),
                sum(lookup.num_rows_hit for lookup in lookups),
            )
        )
        self.overhead_ns.append(times.built_ns - times.start_ns + times.end_ns - times.computed_ns)
        if not num_prefill:
            for lookup in lookups:
                if lookup.is_early:
                    continue
                self.layers[lookup.layer_index].append(
                    LayerStep(
                        window_ns=times.windows_ns[lookup.layer_index],
                        lookup_ns=lookup.ready_ns - lookup.issued_ns,
                        stall_ns=lookup.stall_ns,
                        num_rows_read=lookup.num_rows_read,
                    )
                )
        if len(self._steps) <= MAX_SPAN_STEPS:
            self._add_spans(plan, times, lookups)

    def outcome(self, outcome: StepOutcome, at_ns: int) -> None:
        """What a step led to: first tokens, requests that are done, tokens fed in vain (time relative to run start)."""
        self.num_wasted_tokens += outcome.num_wasted
        for sequence in outcome.first_token:
            self._first_token_ns[sequence.request.request_id] = at_ns
        for sequence in outcome.finished:
            self._finish_ns[sequence.request.request_id] = at_ns

    def samples(self, requests: Sequence[Request]) -> Samples:
        """Samples of the whole run; every request must have finished."""
        ordered = sorted(requests, key=lambda request: request.request_id)
        columns = tuple(zip(*self._steps, strict=True))
        return Samples(
            requests=RequestSamples(
                arrival_ns=tuple(self._arrival_ns[r.request_id] for r in ordered),
                first_token_ns=tuple(self._first_token_ns[r.request_id] for r in ordered),
                finish_ns=tuple(self._finish_ns[r.request_id] for r in ordered),
                prompt_tokens=tuple(r.prompt_tokens for r in ordered),
                output_tokens=tuple(r.output_tokens for r in ordered),
            ),
            steps=StepSamples(
                start_ns=columns[0],
                duration_ns=columns[1],
                prefill_tokens=columns[2],
                decode_sequences=columns[3],
                stall_ns=columns[4],
                lookup_ns=columns[5],
                rows=columns[6],
                rows_read=columns[7],
                rows_hit=columns[8] if self.has_cache else (),
            ),
        )

    def spans(self) -> tuple[Span, ...]:
        """Bars of the first steps, in order of their start."""
        return tuple(
            Span(name=name, lane=lane, start_ns=start, duration_ns=duration)
            for name, lane, start, duration in sorted(self._spans, key=lambda span: (span[2], span[1]))
        )

    def _add_spans(self, plan: StepPlan, times: StepTimes, lookups: Sequence[LookupTiming]) -> None:
        number = len(self._steps) - 1
        name = f"step {number}: {len(plan.decodes)} decode + {plan.num_prefill_tokens} prefill"
        bars = [
            (name, "step", times.start_ns, times.end_ns),
            (f"compute {number}", "compute", times.issued_ns, times.computed_ns),
        ]
        for lookup in lookups:
            layer_id = self.layer_ids[lookup.layer_index]
            label = f"{lookup.num_rows_read} rows" + (" ahead" if lookup.is_early else "")
            bars.append((label, f"lookup layer {layer_id}", lookup.started_ns, lookup.ready_ns))
            if lookup.stall_ns:
                bars.append(("stall", f"stall layer {layer_id}", lookup.ready_ns - lookup.stall_ns, lookup.ready_ns))
        self._spans.extend(
            (name, lane, start - self.origin_ns, max(0, stop - start)) for name, lane, start, stop in bars
        )
