"""The allocator of everything that is as large as the bucket.

Arrow's default allocator asks for huge pages, and the system clears each of them whole, at a cost of
up to a third of the CPU time of a read; for memory that is filled once and kept, others do better.
"""

from __future__ import annotations

import pyarrow as pa


def _choose() -> pa.MemoryPool:
    try:
        return pa.jemalloc_memory_pool()
    except NotImplementedError:  # a build of Arrow without it: Windows, for one
        return pa.system_memory_pool()


POOL: pa.MemoryPool = _choose()
