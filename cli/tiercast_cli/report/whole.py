"""The report as a whole: its sections in order, and the page of a single sweep."""

from collections.abc import Iterator, Sequence

from tiercast_cli.report import answer, other_sections, run_sections
from tiercast_cli.report.gather import Contents, NamedRows
from tiercast_cli.report.page import page
from tiercast_cli.report.parts import Section
from tiercast_plan.sweep import SweepRow
from tiercast_profiles import __version__

FOOT = (
    f"Made by Tiercast {__version__}. Numbers in brackets are intervals; what they are made of stands in the records."
)


def report(title: str, contents: Contents) -> str:
    """The page about everything that was gathered."""
    return page(title, answer.sentence(contents.entries), sections(contents), FOOT)


def sections(contents: Contents) -> list[Section]:
    """The sections for which there is something to show."""
    return list(_sections(contents))


def _sections(contents: Contents) -> Iterator[Section]:
    found: list[Section | None] = []
    if contents.entries:
        found += [answer.overview(contents.entries), *run_sections.run_sections(contents.entries)]
    found += [
        other_sections.pareto(contents.entries, contents.sweeps),
        other_sections.sensitivity(contents.sweeps),
        other_sections.hit_rates(contents.localities),
    ]
    if contents.entries:
        found.append(other_sections.evidence(contents.entries))
    yield from (section for section in found if section is not None)


def sweep_page(rows: Sequence[SweepRow], name: str) -> str:
    """The page about one sweep."""
    done = sum(row.metrics is not None for row in rows)
    sentence = f"{len(rows)} points of {name}, {done} with a result."
    contents = Contents(sweeps=[NamedRows(name, tuple(rows))])
    return page(f"What if: {name}", sentence, sections(contents), FOOT)
