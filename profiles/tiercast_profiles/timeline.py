"""Spans of one or more records as a Chrome trace, which Perfetto and chrome://tracing open.

A measured record is process 1, a simulated one process 2, so that both timelines lie under each other from the same
zero: the start of the run. Slices of one lane that overlap are laid on further rows of the lane, never on each other.
An arrow leads from each lookup to the step that computes with its rows. Counters show what each step held.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from tiercast_profiles.document import canonical_json
from tiercast_profiles.errors import BadInput
from tiercast_profiles.record import RecordKind, RunRecord, Span
from tiercast_profiles.units import NS_PER_US

LOOKUP_LANE = "lookup layer "
COMPUTE_LANE = "compute"
Event = dict[str, Any]  # Any: JSON of the trace format
Placed = tuple[Span, int]  # a span and the row it lies on

_PID: dict[RecordKind, int] = {"measured": 1, "simulated": 2, "published": 3}


def trace_events(records: Sequence[RunRecord]) -> dict[str, Any]:  # Any: JSON of the trace format
    """The trace as a mapping; the same records always give the same mapping.

    Raises:
        BadInput: no record, or one that holds neither spans nor step samples.
    """
    if not records:
        raise BadInput("a timeline needs at least one record; none was given")
    names: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    taken: set[int] = set()
    for record in records:
        pid = _PID[record.kind]
        while pid in taken:  # two records of one kind: the second takes the next free process
            pid += 1
        taken.add(pid)
        title = f"{record.kind}: {record.provenance.model_name} on {record.provenance.hardware_name}"
        names.append(_name_event("process_name", pid, 0, {"name": title}))
        names.append(_name_event("process_sort_index", pid, 0, {"sort_index": pid}))
        placed: list[Placed] = []
        for tid, (lane, spans) in enumerate(_rows(_spans(record)), start=1):
            names.append(_name_event("thread_name", pid, tid, {"name": lane}))
            names.append(_name_event("thread_sort_index", pid, tid, {"sort_index": tid}))
            placed += [(span, tid) for span in spans]
        slices += [_slice(span, pid, tid) for span, tid in placed]
        slices += _arrows(placed, pid)
        slices += _counters(record, pid, max((span.start_ns + span.duration_ns for span, _ in placed), default=0))
    slices.sort(key=lambda event: (event["ts"], event["pid"], event["tid"]))
    return {
        "traceEvents": names + slices,
        "displayTimeUnit": "ns",
        "otherData": {f"{r.kind} {i}": r.sha256 for i, r in enumerate(records, start=1)},
    }


def chrome_trace(records: Sequence[RunRecord]) -> str:
    """The trace as JSON text, ready to be written to a file: same records, same bytes.

    Raises:
        BadInput: as :func:`trace_events`.
    """
    return canonical_json(trace_events(records)) + "\n"


def _spans(record: RunRecord) -> tuple[Span, ...]:
    """The record's spans, or one bar per step where it kept none."""
    if record.spans:
        return record.spans
    if record.samples is None:
        raise BadInput(
            f"the {record.kind} record holds neither spans nor samples, so there is no timeline; "
            "write the record with its samples"
        )
    steps = record.samples.steps
    return tuple(
        Span(name="step", lane="steps", start_ns=start, duration_ns=duration)
        for start, duration in zip(steps.start_ns, steps.duration_ns, strict=True)
    )


def _rows(spans: Sequence[Span]) -> list[tuple[str, list[Span]]]:
    """Lanes in order of first appearance, each split into as many rows as its overlaps need."""
    lanes: dict[str, list[Span]] = {}
    for span in spans:
        lanes.setdefault(span.lane, []).append(span)
    rows: list[tuple[str, list[Span]]] = []
    for lane, members in lanes.items():
        split: list[list[Span]] = []
        for span in sorted(members, key=lambda s: (s.start_ns, s.duration_ns, s.name)):
            free = next((row for row in split if row[-1].start_ns + row[-1].duration_ns <= span.start_ns), None)
            if free is None:
                split.append([span])
            else:
                free.append(span)
        rows += [(lane if i == 0 else f"{lane} ({i + 1})", row) for i, row in enumerate(split)]
    return rows


def _arrows(placed: Sequence[Placed], pid: int) -> list[Event]:
    """From every lookup to the first compute of its replica that ends behind it: there its rows are used.

    An arrow starts where the lookup starts, so that it is bound to that slice and not to the next one on the row.
    """
    computes: dict[str, list[Placed]] = {}
    for one in placed:
        lane = one[0].lane
        if lane.endswith(COMPUTE_LANE):
            computes.setdefault(lane.removesuffix(COMPUTE_LANE), []).append(one)
    for members in computes.values():
        members.sort(key=lambda one: one[0].start_ns)
    arrows: list[Event] = []
    for span, tid in placed:
        replica, found, _ = span.lane.partition(LOOKUP_LANE)
        ready_ns = span.start_ns + span.duration_ns
        members = computes.get(replica, []) if found else []
        first = bisect_right(members, ready_ns, key=lambda one: one[0].start_ns + one[0].duration_ns)
        if first == len(members):
            continue
        used, used_tid = members[first]
        # Ids are unique in the whole file, also with a second process in it.
        arrow = {"cat": "rows", "name": "rows", "id": f"{pid}.{len(arrows) // 2}", "pid": pid}
        arrows.append({**arrow, "ph": "s", "tid": tid, "ts": _us(span.start_ns)})
        used_ns = max(ready_ns, used.start_ns)
        arrows.append({**arrow, "ph": "f", "bp": "e", "tid": used_tid, "ts": _us(used_ns)})
    return arrows


def _counters(record: RunRecord, pid: int, end_ns: int) -> list[Event]:
    """What each step held, as long as there are slices: sequences, prompt tokens, rows read.

    Steps of several replicas overlap and their samples do not say whose they are: then there are no counters.
    """
    if record.samples is None or record.scenario.parallel.num_replicas > 1:
        return []
    steps = record.samples.steps
    tracks = {
        "decode sequences": steps.decode_sequences,
        "prefill tokens": steps.prefill_tokens,
        "rows read": steps.rows_read,
    }
    return [
        {"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _us(start), "args": {name: value}}
        for name, values in tracks.items()
        for start, value in zip(steps.start_ns, values, strict=True)
        if start < end_ns
    ]


def _us(time_ns: int) -> int | float:
    """Microseconds that keep the nanosecond: whole ones as int, others with three decimals."""
    whole, rest = divmod(time_ns, NS_PER_US)
    return whole if rest == 0 else round(time_ns / NS_PER_US, 3)


def _slice(span: Span, pid: int, tid: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.lane,
        "pid": pid,
        "tid": tid,
        "ts": _us(span.start_ns),
        "dur": _us(span.duration_ns),
    }


def _name_event(name: str, pid: int, tid: int, args: dict[str, str | int]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": pid, "tid": tid, "args": args}
