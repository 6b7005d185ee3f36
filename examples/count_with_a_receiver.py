"""The callbacks underneath: a receiver that counts the mutations and deletions of a bounded read.

For those who port a program from Go's ``cbdatasource``, or want every change as it comes.
"""

from collections import Counter

from cbframe import BucketDataSource, BucketDataSourceOptions, CbframeError, Document, LocalCluster


class Counting:
    """Callbacks come from one thread per node: each vbucket keeps its own counter."""

    def __init__(self) -> None:
        self.mutations: Counter[int] = Counter()
        self.deletions: Counter[int] = Counter()
        self.errors: list[CbframeError] = []
        self._metadata: dict[int, bytes] = {}
        self._seqno: dict[int, int] = {}

    def data_update(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        self.mutations[vbucket] += 1
        self._seqno[vbucket] = seqno

    def data_delete(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        self.deletions[vbucket] += 1
        self._seqno[vbucket] = seqno

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        pass

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        self._metadata[vbucket] = metadata

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return self._metadata.get(vbucket), self._seqno.get(vbucket, 0)

    def rollback(self, vbucket: int, seqno: int) -> None:
        # Nothing is kept below a vbucket, so it is counted again from its beginning.
        for store in (self.mutations, self.deletions, self._metadata, self._seqno):
            store.pop(vbucket, None)

    def on_error(self, error: CbframeError) -> None:
        self.errors.append(error)


def main() -> None:
    with LocalCluster(nodes=2, vbuckets=64) as cluster:
        for number in range(2000):
            cluster.upsert(f"key_{number}", {"number": number})
        for number in range(0, 2000, 10):
            cluster.delete(f"key_{number}")

        receiver = Counting()
        source = BucketDataSource(
            cluster.connection_string,
            "default",
            cluster.bucket,
            "",
            None,
            (cluster.username, cluster.password),
            receiver,
            BucketDataSourceOptions(seq_end="now"),
        )
        with source:
            source.wait(timeout=30)
            stats = source.stats()

    mutations, deletions = receiver.mutations.total(), receiver.deletions.total()
    print(f"{mutations:,} mutations and {deletions:,} deletions in {stats.vbuckets_done} vbuckets")
    for node, counters in stats.nodes.items():
        print(f"{node}: {counters.documents:,} changes, {counters.bytes_received:,} bytes")

    # A key that was written and then deleted arrives once: DCP sends the newest change of each key.
    assert (mutations, deletions) == (1800, 200)
    assert not receiver.errors


if __name__ == "__main__":
    main()
