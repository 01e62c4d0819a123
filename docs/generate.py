"""Fill the generated places of README.md from the committed demo record.

``python docs/generate.py`` rewrites them; ``--check`` changes nothing and exits 1 when a page is stale. The record is
made by ``tiercast demo --folder validation/<machine>`` and committed; nothing here computes a number.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "validation" / "two-core-epyc"
FIRST_SHOWN = "3. The same work"  # README leaves out what the probes found and the row reuse of the texts


def blocks(record: Path) -> dict[str, str]:
    """Text of each generated place, by marker name."""
    page = (record / "output.txt").read_text(encoding="utf-8").strip("\n")
    page = page[page.index(FIRST_SHOWN) :]
    return {
        "demo-output": f"```\n{page}\n```",
        "error-table": (record / "error-table.md").read_text(encoding="utf-8").strip("\n"),
    }


def filled(text: str, places: dict[str, str]) -> str:
    """``text`` with every ``<!-- name:begin --> … <!-- name:end -->`` filled.

    Raises:
        ValueError: a place is not marked in the text.
    """
    for name, block in places.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no place named {name} is marked")
        text = pattern.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def main() -> int:
    """Rewrite, or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when README.md is stale")
    arguments = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    wanted = filled(text, blocks(RECORD))
    if wanted == text:
        return 0
    if arguments.check:
        sys.stderr.write("README.md is stale; run make docs\n")
        return 1
    readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
