"""The rows a sweep asks for: random, random in ascending order, or those that real text asks for."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tiercast_profiles.gather import RowOrder
from tiercast_profiles.model import ModelSpec
from tiercast_profiles.rng import stream
from tiercast_profiles.text import load_text
from tiercast_runtime.hashing import build_windows, numpy_row_ids
from tiercast_runtime.probes.sweep_grid import Spot

Ids = npt.NDArray[np.int64]

TEXT_NAME = "docs"
MAX_TEXT_TOKENS = 50_000
NUM_DRAWS = 8  # gathers whose different rows are counted
SCATTER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: neighbours land far apart


@dataclass(slots=True)
class RowSource:
    """Draws row ids as int64, fresh ones each time; ``text_ids`` are rows as text asks for them.

    What a text tells is which rows repeat. They are scattered over the whole table, whatever its size, as the hash of a
    model of that size would scatter them: left where a small model has them they would fill a corner of a large table.
    """

    order: RowOrder
    text_ids: Ids | None = None
    _generator: np.random.Generator = field(default_factory=lambda: stream(0, "gather-sweep"))

    def draw(self, spot: Spot, table_rows: int) -> Ids:
        """Rows of one gather from a table of ``table_rows``."""
        (ids,) = self.draws(spot, table_rows, 1)
        return np.asarray(ids)

    def draws(self, spot: Spot, table_rows: int, num_gathers: int) -> Ids:
        """Rows of several gathers, ``[num_gathers, num_rows]``."""
        if self.order == "text":
            assert self.text_ids is not None, "text order comes with the rows of a text"
            first = self._generator.integers(0, len(self.text_ids) - spot.num_rows, size=(num_gathers, 1))
            return scattered(self.text_ids[first + np.arange(spot.num_rows)], table_rows)
        ids = self._generator.integers(0, table_rows, size=(num_gathers, spot.num_rows), dtype=np.int64)
        return np.sort(ids, axis=1) if self.order == "sorted" else ids

    @property
    def num_distinct_rows(self) -> int | None:
        """How many rows are ever asked for, where they are those of a text."""
        return None if self.order != "text" or self.text_ids is None else len(np.unique(self.text_ids))

    def unique_ratio(self, spot: Spot) -> float:
        """Mean share of different rows in one gather."""
        table_rows = spot.footprint_bytes // spot.row_bytes
        return float(np.mean([len(np.unique(self.draw(spot, table_rows))) / spot.num_rows for _ in range(NUM_DRAWS)]))


def scattered(ids: Ids, table_rows: int) -> Ids:
    """Places, int64, all over a table for ids of any shape: the same one for the same id."""
    return ((ids.astype(np.uint64) * SCATTER >> np.uint64(16)) % np.uint64(table_rows)).astype(np.int64)


def text_rows(model: ModelSpec) -> Ids:
    """Rows of the model's first Engram layer that the Python manual asks for, token after token.

    Raises:
        MissingCapability: no vocabulary is installed, or the model's hash is not known.
        BadInput: the vocabulary does not match what the model file states.
    """
    text = load_text(TEXT_NAME, model)
    folded = text.folded_ids[:MAX_TEXT_TOKENS] % model.engram.compressed_vocab_size
    windows = build_windows(folded, 0, len(folded), model.engram.ngram_orders[-1])
    rows: Ids = numpy_row_ids(model.engram, windows)[0].reshape(-1)
    return rows
