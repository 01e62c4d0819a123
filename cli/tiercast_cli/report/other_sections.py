"""Sections beside the runs: the trade of price against latency, sweeps, texts, and where every number comes from."""

from collections.abc import Iterator, Sequence

from tiercast_cli import render
from tiercast_cli.catalogue_views import flatten
from tiercast_cli.report import charts
from tiercast_cli.report.gather import Entry, NamedRows
from tiercast_cli.report.parts import Chart, Section, Table
from tiercast_cli.text_locality import TextLocality
from tiercast_plan.sweep import SweepRow
from tiercast_profiles.document import Document
from tiercast_profiles.record import Metrics

MAX_TABLE_ROWS = 500


def pareto(entries: Sequence[Entry], sweeps: Sequence[NamedRows]) -> Section | None:
    """Price against time per output token, of runs and of sweep points."""
    runs = [(_tpot(entry.record.metrics), _usd(entry.cost), entry.name) for entry in entries]
    series = [("runs", _known(runs))]
    for sweep in sweeps:
        found = [
            (None if row.metrics is None else _tpot(row.metrics), _usd(row.cost), words(row)) for row in sweep.rows
        ]
        series.append((sweep.name, _known(found)))
    series = [(name, items) for name, items in series if items]
    every = [item for _, items in series for item in items]
    if len(every) < 2:
        return None
    best = front(every)
    rows = tuple((label, render.number(tpot), render.number(usd)) for tpot, usd, label in best)
    chart = Chart(
        "US dollars per million tokens against time per output token (p50): left and down is better.",
        charts.points(
            series,
            "TPOT p50, ms",
            "USD per million tokens",
            line=[(tpot, usd) for tpot, usd, _ in best],
            line_name="not beaten in both",
        ),
        Table("not beaten in both", ("point", "TPOT p50, ms", "USD/Mtok"), rows),
    )
    return Section("pareto", "Price against latency", (), (chart,))


def front(items: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """The points that no other beats in both numbers, by rising first number."""
    best: list[tuple[float, float, str]] = []
    for item in sorted(items):
        if not best or item[1] < best[-1][1]:
            best.append(item)
    return best


def _known(items: Sequence[tuple[float | None, float | None, str]]) -> list[tuple[float, float, str]]:
    return [(tpot, usd, label) for tpot, usd, label in items if tpot is not None and usd is not None]


def _tpot(metrics: Metrics) -> float | None:
    return None if metrics.tpot_ms is None else metrics.tpot_ms.p50.value


def _usd(cost: object) -> float | None:
    found = getattr(cost, "usd_per_mtok", None)
    return None if found is None else float(found["total"].value)


def words(row: SweepRow) -> str:
    """What was set, in a few words."""
    return ", ".join(str(value) for value in row.settings.values()) or "as given"


def sensitivity(sweeps: Sequence[NamedRows]) -> Section | None:
    """What each sweep did to throughput, stall and price."""
    found = [chart for sweep in sweeps for chart in _sweep_charts(sweep)]
    if not found:
        return None
    text = [
        f"{sweep.name}: {words(row)}: {row.problem}"
        for sweep in sweeps
        for row in sweep.rows[:MAX_TABLE_ROWS]
        if row.problem is not None
    ]
    return Section("sensitivity", "What moves the answer", tuple(dict.fromkeys(text))[:20], tuple(found))


def _sweep_charts(sweep: NamedRows) -> Iterator[Chart]:
    rows = [row for row in sweep.rows if row.metrics is not None]
    if not rows:
        return
    axis = _numeric_axis(rows)
    columns: dict[str, list[float | None]] = {
        "output tokens/s": [row.metrics.output_tokens_per_s.value if row.metrics else None for row in rows],
        "USD per million tokens": [_usd(row.cost) for row in rows],
        "stall, ms per step": [row.metrics.stall_ms_per_step.value if row.metrics else None for row in rows],
    }
    for index, (name, values) in enumerate(columns.items()):
        if all(value is None for value in values):
            continue
        label = f"{sweep.name}: {name}."
        numbers = _sweep_table(sweep) if index == 0 else None
        if axis is None:
            pairs = zip(rows, values, strict=True)
            items = [(words(row), value, None, None) for row, value in pairs if value is not None]
            yield Chart(label, charts.bars([(name, items)], name), numbers)
        else:
            lines, is_log = _lines(rows, values, axis)
            yield Chart(label, charts.lines(lines, axis, name, is_log=is_log), numbers)


def _numeric_axis(rows: Sequence[SweepRow]) -> str | None:
    """The setting with the most different numbers, where there are three at least."""
    best, most = None, 2
    for path in rows[0].settings:
        values = [row.settings.get(path) for row in rows]
        if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            count = len(set(map(str, values)))
            if count > most:
                best, most = path, count
    return best


Line = tuple[str, list[float], list[float | None]]


def _lines(rows: Sequence[SweepRow], values: Sequence[float | None], axis: str) -> tuple[list[Line], bool]:
    """One line for each combination of the other settings; logarithmic where the numbers span a factor of eight."""
    groups: dict[str, list[tuple[float, float | None]]] = {}
    for row, value in zip(rows, values, strict=True):
        others = ", ".join(str(item) for path, item in row.settings.items() if path != axis)
        where = row.settings[axis]
        assert isinstance(where, (int, float))
        groups.setdefault(others or "all", []).append((float(where), value))
    lines: list[Line] = []
    for name, items in groups.items():
        items.sort(key=lambda item: item[0])
        lines.append((name, [x for x, _ in items], [y for _, y in items]))
    places = [x for _, xs, _ in lines for x in xs]
    return lines, min(places) > 0 and max(places) >= 8 * min(places)


def _sweep_table(sweep: NamedRows) -> Table:
    cells = []
    for row in sweep.rows[:MAX_TABLE_ROWS]:
        metrics = row.metrics
        cells.append(
            (
                words(row),
                row.problem or "",
                render.UNKNOWN if metrics is None else render.with_interval(metrics.output_tokens_per_s),
                render.UNKNOWN if metrics is None else render.with_interval(metrics.stall_ms_per_step),
                render.number(_usd(row.cost)),
            )
        )
    title = "points" if len(sweep.rows) <= MAX_TABLE_ROWS else f"the first {MAX_TABLE_ROWS} of {len(sweep.rows)} points"
    return Table(title, ("point", "no result", "output tokens/s", "stall, ms/step", "USD/Mtok"), tuple(cells), left=2)


def hit_rates(localities: Sequence[TextLocality]) -> Section | None:
    """What caches of row reads would serve, by size, streams and policy."""
    if not localities:
        return None
    found = []
    for text in localities:
        streams = sorted({point.num_streams for point in text.reuse.caches})
        lines = []
        rows = []
        for count in streams:
            own = sorted(
                (point for point in text.reuse.caches if point.num_streams == count), key=lambda p: p.cache_gib
            )
            sizes = [point.cache_gib for point in own]
            lines.append((f"LRU, {count} streams", sizes, [100 * point.lru_hit_ratio for point in own]))
            lines.append((f"optimal, {count} streams", sizes, [100 * point.optimal_hit_ratio for point in own]))
            rows += [
                (
                    f"{point.cache_gib:g}",
                    str(count),
                    render.percent(point.lru_hit_ratio),
                    render.percent(point.lfu_hit_ratio),
                    render.percent(point.static_hot_hit_ratio),
                    render.percent(point.optimal_hit_ratio),
                )
                for point in own
            ]
        columns = ("cache, GiB", "streams", "LRU", "LFU", "static hot", "optimal")
        label = f"{text.text}, {text.reuse.num_tokens:,} tokens of {text.vocabulary}: row reads served by a cache."
        figure = charts.lines(lines, "cache, GiB", "row reads served, %")
        found.append(Chart(label, figure, Table("row reads served", columns, tuple(rows), left=0)))
    return Section("reuse", "How often rows repeat", (), tuple(found))


def evidence(entries: Sequence[Entry]) -> Section:
    """Every number that the runs rest on, with mark, source and date; warnings; what identifies the runs."""
    documents: dict[str, Document] = {}
    for entry in entries:
        if entry.resolved is not None:
            for document in (entry.resolved.hardware, entry.resolved.model, entry.resolved.prices):
                documents.setdefault(document.sha256, document)
    missing = [
        f"{entry.name}: its documents are not at hand as they were; the record names them by hash"
        for entry in entries
        if entry.resolved is None
    ]
    warnings = dict.fromkeys(warning for entry in entries for warning in entry.record.provenance.warnings)
    made = tuple(
        (
            entry.name,
            entry.record.kind,
            entry.record.provenance.tool_version,
            entry.record.scenario_sha256[:12],
            entry.record.workload_sha256[:12],
            entry.record.provenance.hardware_sha256[:12],
        )
        for entry in entries
    )
    columns = ("run", "kind", "Tiercast", "scenario", "workload", "hardware")
    tables = [Table("what identifies the runs (SHA-256, first 12 digits)", columns, made, left=2)] if made else []
    return Section(
        "evidence",
        "What it rests on",
        (
            *(f"Warning: {warning}" for warning in warnings),
            *missing,
            "Marks: V read in the source, V2 in a secondary source, M measured, D derived, R recalled, ? ambiguous.",
        ),
        tables=(*tables, *(_document(document) for document in documents.values())),
    )


def _document(document: Document) -> Table:
    rows = []
    for path, shown in flatten(document).items():
        source = document.source_of(path)
        cells = (
            ("", "", "", "") if source is None else (source.kind, source.mark, source.date.isoformat(), source.source)
        )
        rows.append((path, shown, *cells))
    columns = ("what", "value [low .. high]", "kind", "mark", "date", "source")
    return Table(f"every number of {document.name}", columns, tuple(rows), left=6, is_folded=True)
