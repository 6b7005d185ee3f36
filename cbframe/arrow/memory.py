"""The allocator of everything that is as large as the bucket.

Arrow's default allocator asks for huge pages, and the system clears each of them whole, at a cost of
up to a third of the CPU time of a read; for memory that is filled once and kept, the system's own
allocator does better.
"""

from __future__ import annotations

import pyarrow as pa

POOL: pa.MemoryPool = pa.system_memory_pool()
