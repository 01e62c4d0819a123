"""What a benchmark found: printed, and with ``--record FILE`` written down beside the machine it was measured on.

``docs/generate.py`` puts the committed records into benchmarks/README.md.
"""

import argparse
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from tiercast_runtime.probes.timing import Spread
from write_record import write_record

LIBRARIES = ("torch", "numba")


class Figures:
    """Figures of one benchmark, case by case: ours beside each alternative, timed in the same rounds."""

    def __init__(self, title: str) -> None:
        parser = argparse.ArgumentParser(description=title)
        parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures as JSON")
        self._file: Path | None = parser.parse_args().record
        self._title = title
        self._figures: dict[str, object] = {}
        self._notes: list[str] = []
        print(title)

    def note(self, text: str) -> None:
        """Something a reader of the figures must know."""
        self._notes.append(text)
        print(text)

    def compare(
        self,
        case: str,
        spreads: Mapping[str, Spread[str]],
        *,
        unit: str,
        ours: str,
        target_ratio: float | None = None,
        aside: tuple[str, ...] = (),
    ) -> None:
        """Ours beside the best of the others; the ratio says how many times faster ours is.

        Values are times, or rates where ``unit`` ends in ``/s``. Ways in ``aside`` are shown and not compared with.
        """
        is_rate = unit.endswith("/s")
        others = {name: spread.value for name, spread in spreads.items() if name != ours and name not in aside}
        best = (max if is_rate else min)(others, key=others.__getitem__)
        mine = spreads[ours].value
        ratio = mine / others[best] if is_rate else others[best] / mine
        ways = {
            name: {
                "median": _rounded(spread.value),
                "quartiles": [_rounded(spread.low), _rounded(spread.high)],
                "num_samples": len(spread.samples),
            }
            for name, spread in spreads.items()
        }
        assert case not in self._figures, f"two cases are named {case!r}"
        self._figures[case] = {
            "unit": unit,
            "ours": ours,
            "best_other": best,
            "ratio": _rounded(ratio),
            "target_ratio": target_ratio,
            "ways": ways,
        }
        for name, spread in spreads.items():
            mark = f"  ours / best other {ratio:.2f}" if name == ours else "  not compared" if name in aside else ""
            print(
                f"{case:34} {name:30} {spread.value:12,.5g} {unit} [{spread.low:,.5g} .. {spread.high:,.5g}] "
                f"x{len(spread.samples)}{mark}",
                flush=True,
            )

    def finish(self) -> None:
        """Write the record if one was asked for."""
        if self._file is None:
            return
        libraries = {name: metadata.version(name) for name in LIBRARIES if _is_installed(name)}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_record(self._file, self._figures, title=self._title, libraries=libraries, notes=self._notes)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
