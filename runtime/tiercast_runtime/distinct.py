"""Which rows a lookup asks for, each once. NumPy only, for worker processes that know nothing of torch."""

import numpy as np
import numpy.typing as npt

from tiercast_profiles.errors import BadInput


def distinct(ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct ``ids [n]``, ascending, and the place of each id among them ``[n] int64``.

    As ``np.unique`` with its inverse, which takes half as long again for the ids of a decode step: on one x86 core 7.5
    and 5.1 µs for 96 ids, 21 and 15 µs for 768, 510 and 480 µs for 24,576.
    """
    order = ids.argsort()
    ascending = ids[order]
    is_first = np.empty(len(ids), dtype=np.bool_)
    is_first[:1] = True
    np.not_equal(ascending[1:], ascending[:-1], out=is_first[1:])
    inverse = np.empty(len(ids), dtype=np.int64)
    inverse[order] = is_first.cumsum() - 1
    return ascending[is_first], inverse


def distinct_rows(
    ids: npt.NDArray[np.int64], num_rows: int, label: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """``distinct`` of row ids of a table of ``num_rows`` rows, which an error calls ``label``.

    Raises:
        BadInput: an id outside the table.
    """
    unique, inverse = distinct(ids)
    if len(unique) and (unique[0] < 0 or unique[-1] >= num_rows):
        worst = int(unique[0] if unique[0] < 0 else unique[-1])
        raise BadInput(f"row id {worst} lies outside {label}: the table has rows 0 … {num_rows - 1}")
    return unique, inverse
