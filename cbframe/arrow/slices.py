"""Memory of Arrow arrays, and pieces of a buffer as one: copied once, no Python object a piece."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_I64 = npt.NDArray[np.int64]


def _choose() -> pa.MemoryPool:
    try:
        return pa.jemalloc_memory_pool()
    except NotImplementedError:  # a build of Arrow without it: Windows, for one
        return pa.system_memory_pool()


POOL: pa.MemoryPool = _choose()
"""The allocator of everything that is as large as the bucket.

Arrow's default allocator asks for huge pages, and the system clears each of them whole, at a cost of
up to a third of the CPU time of a read; for memory that is filled once and kept, others do better.
"""


def copy_slices(buffer: object, starts: _I64, stops: _I64) -> pa.BinaryArray:
    """Copy ``buffer[starts[i]:stops[i]]`` for all i; each begins where the one before ends, or later.

    One binary array is laid over the buffer, whose elements are in turn a piece and what lies between
    it and the next one. ``take`` then copies the pieces in C++.

    It reserves the mean length of *all* elements for each one taken. Pieces are longer than gaps, as a
    rule, so it would grow its memory again and again, at four times the cost of the copy itself. Taking
    the last element, which is empty, often enough besides makes the reservation fit.
    """
    rows = len(starts)
    if not rows:
        return pa.array([], pa.binary())
    bounds = np.empty(2 * rows + 1, np.int32)
    bounds[0:-1:2] = starts
    bounds[1::2] = stops
    bounds[-1] = bounds[-2]
    elements = 2 * rows
    pieces = pa.BinaryArray.from_buffers(
        pa.binary(), elements, [None, pa.py_buffer(bounds), pa.py_buffer(buffer)]
    )
    wanted = int((bounds[1::2] - bounds[0:-1:2]).sum())
    total = max(int(bounds[-1] - bounds[0]), 1)
    indices = np.full(max(rows, -(-wanted * elements // total)), elements - 1, np.int32)
    indices[:rows] = np.arange(0, elements, 2)
    return pc.take(pieces, pa.array(indices), boundscheck=False, memory_pool=POOL).slice(0, rows)
