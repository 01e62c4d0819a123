"""Hardware parts as tables."""

from collections.abc import Mapping, Sequence

from tiercast_cli import render
from tiercast_profiles import store


def part_rows() -> list[dict[str, object]]:
    """The shipped parts: kind, name, what each is, and the marks its own sources carry."""
    return [
        {
            "kind": part.kind,
            "name": part.name,
            "marks": sorted({str(source["mark"]) for source in part.sources.values()}),
            "description": part.description,
        }
        for part in store.shipped_parts()
    ]


def show_parts(rows: Sequence[Mapping[str, object]]) -> None:
    """The parts as a table, a kind after the other."""
    cells = [[str(row["kind"]), str(row["name"]), str(row["description"])] for row in rows]
    render.table("", ["kind", "name", "what it is"], cells, left=3)
    render.line("docs/hardware.md says how to put a machine of your own together from them.")
