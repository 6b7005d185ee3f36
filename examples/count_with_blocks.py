"""A receiver of blocks: what is wanted of a million documents, without a Python object for each."""

import threading
from collections import Counter

import numpy as np

from cbframe import BucketDataSource, BucketDataSourceOptions, LocalCluster, Opcode
from cbframe.wire.blocks import DataBlock


class Sizes:
    """Adds up the sizes of documents, by vbucket; the columns of a block are numpy arrays."""

    def __init__(self) -> None:
        self.documents: Counter[int] = Counter()
        self.nbytes: Counter[int] = Counter()
        self._lock = threading.Lock()
        self._stored: dict[int, tuple[bytes | None, int]] = {}

    def on_block(self, block: DataBlock) -> None:
        documents = block.opcode == Opcode.DCP_MUTATION
        sizes = (block.value_end - block.value_start)[documents]
        vbuckets, codes = np.unique(block.vbucket[documents], return_inverse=True)
        # Each node has a thread of its own; a vbucket's calls come from one at a time.
        with self._lock:
            self.documents.update(dict(zip(vbuckets.tolist(), np.bincount(codes).tolist(), strict=True)))
            sums = np.bincount(codes, weights=sizes).astype(int)
            self.nbytes.update(dict(zip(vbuckets.tolist(), sums.tolist(), strict=True)))
        for vbucket in np.unique(block.vbucket).tolist():
            metadata, _ = self._stored.get(vbucket, (None, 0))
            self._stored[vbucket] = metadata, int(block.seqno[block.vbucket == vbucket].max())

    # Where to go on after a connection was lost: here, in memory.

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        self._stored[vbucket] = metadata, self._stored.get(vbucket, (None, 0))[1]

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return self._stored.get(vbucket, (None, 0))

    def rollback(self, vbucket: int, seqno: int) -> None:
        raise RuntimeError(f"vbucket {vbucket} was rolled back: what was added up cannot be subtracted")

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        pass

    def on_error(self, error: Exception) -> None:
        print("problem:", error)


def main() -> None:
    with LocalCluster(nodes=2, vbuckets=64) as cluster:
        cluster.load_sample(5000)
        sizes = Sizes()
        source = BucketDataSource(
            cluster.connection_string,
            "default",
            cluster.bucket,
            "",
            None,
            (cluster.username, cluster.password),
            sizes,
            BucketDataSourceOptions(seq_end="now"),
        )
        with source:
            source.wait(timeout=30)
        existing = cluster.item_count()

    total = sizes.documents.total()
    print(f"{total:,} documents, {sizes.nbytes.total():,} bytes")
    print(f"{sizes.nbytes.total() / total:.0f} bytes each")
    largest, count = sizes.documents.most_common(1)[0]
    print(f"most are in vbucket {largest}: {count}")
    assert total == existing


if __name__ == "__main__":
    main()
