"""A receiver that keeps what it gets: documents by vbucket and key, and every call."""

from __future__ import annotations

import threading
from collections import defaultdict

from cbframe.dcp.receiver import Document
from cbframe.errors import CbframeError


class RecordingReceiver:
    """Holds the newest version of each document, and reads a vbucket again after a rollback.

    Attributes
    ----------
    documents
        By vbucket and key (without collection): what exists now.
    errors
        What `on_error` was given.
    rollbacks
        Vbucket and seqno of each rollback.
    threads
        Names of the threads that called, by vbucket.
    """

    def __init__(self) -> None:
        self.documents: defaultdict[int, dict[bytes, Document]] = defaultdict(dict)
        self.seqnos: dict[int, int] = {}
        self.metadata: dict[int, bytes] = {}
        self.snapshots: list[tuple[int, int, int, int]] = []
        self.errors: list[CbframeError] = []
        self.rollbacks: list[tuple[int, int]] = []
        self.threads: defaultdict[int, set[str]] = defaultdict(set)
        self.changed = threading.Condition()

    def data_update(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:
        with self.changed:
            self.documents[vbucket][key] = document
            self._took(vbucket, seqno)

    def data_delete(self, vbucket: int, key: bytes, seqno: int, document: Document) -> None:  # noqa: ARG002
        with self.changed:
            self.documents[vbucket].pop(key, None)
            self._took(vbucket, seqno)

    def _took(self, vbucket: int, seqno: int) -> None:
        self.seqnos[vbucket] = seqno
        self.threads[vbucket].add(threading.current_thread().name)
        self.changed.notify_all()

    def on_error(self, error: CbframeError) -> None:
        with self.changed:
            self.errors.append(error)
            self.changed.notify_all()

    def snapshot_start(self, vbucket: int, start: int, end: int, flags: int) -> None:
        self.snapshots.append((vbucket, start, end, flags))

    def set_metadata(self, vbucket: int, metadata: bytes) -> None:
        self.metadata[vbucket] = metadata

    def get_metadata(self, vbucket: int) -> tuple[bytes | None, int]:
        return self.metadata.get(vbucket), self.seqnos.get(vbucket, 0)

    def rollback(self, vbucket: int, seqno: int) -> None:
        with self.changed:
            self.rollbacks.append((vbucket, seqno))
            self.documents.pop(vbucket, None)
            self.seqnos.pop(vbucket, None)
            self.metadata.pop(vbucket, None)
            self.changed.notify_all()

    def values(self) -> dict[bytes, bytes]:
        """Key and value of every document there is."""
        with self.changed:
            return {key: doc.value for docs in self.documents.values() for key, doc in docs.items()}
