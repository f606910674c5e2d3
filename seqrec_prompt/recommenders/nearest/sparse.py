"""Sparse matrices row by row: the best entries of each row, and entries drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from seqrec_prompt.ragged import LongArray, places

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def rows_of(matrix: csr_array) -> LongArray:
    """(entries,) the row of each stored entry."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def best(matrix: csr_array, take: LongArray) -> LongArray:
    """Positions in `matrix.data` of the `take[row]` largest entries of each row, best first; ties: lower column first.

    Entries are positive and compared as 32-bit floats, whose bits sort as their values do: where row, value and column
    fit 64 bits together, one sort of whole numbers does it all.
    """
    rows, values = rows_of(matrix), matrix.data.astype(np.float32)
    row_bits, column_bits = (size.bit_length() for size in matrix.shape)
    if row_bits + column_bits <= 64 - 31:
        falling = (np.uint64(2**31 - 1) - values.view(np.uint32)) << np.uint64(column_bits)
        row = rows.astype(np.uint64) << np.uint64(31 + column_bits)
        order = np.argsort(row | falling | matrix.indices.astype(np.uint64), kind="stable")
    else:
        order = np.lexsort((matrix.indices, -values, rows))
    # Sorting kept the rows together, so entry j of `order` is in row rows[j].
    return order[places(np.diff(matrix.indptr)) < take[rows]]


def mixed(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scatter whole numbers over 64 bits: the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA'14)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
