"""Rows of changes as they are given out: kinds of change, names of collections, nothing of the server's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import COLLECTION_ID, DATATYPE, KEY, METADATA_TYPES, OPCODE, SEQNO, VBUCKET
from cbframe.arrow.exclusion import of_transactions
from cbframe.arrow.keys import KEY_TYPES, KeyForm, formed
from cbframe.cluster.collections_manifest import SYSTEM_SCOPE, CollectionName, CollectionsManifest
from cbframe.errors import CbframeError
from cbframe.json.typer import VALUE
from cbframe.scan.changes import CHANGE_TYPE, CHANGE_TYPES, CollectionDrop
from cbframe.wire.constants import Opcode, SystemEventId
from cbframe.wire.messages import SystemEvent

_KIND = np.zeros(256, np.int8)
_KIND[[Opcode.DCP_MUTATION, Opcode.DCP_DELETION, Opcode.DCP_EXPIRATION]] = (0, 1, 2)
_DEFAULT = CollectionName("_default", "_default")
_NAME = pa.dictionary(pa.int32(), pa.string())


class Directory:
    """Names of collections by their ids: as they were at the start, and as the streams report since."""

    def __init__(
        self,
        fetch: Callable[[], CollectionsManifest | None],
        known: Mapping[int, CollectionName] | None = None,
    ) -> None:
        self._fetch = fetch
        self._names: dict[int, CollectionName | None] = {0: _DEFAULT, **(known or {})}
        self._scopes: dict[int, str] = {0: "_default"}
        self._begun: set[tuple[int, int]] = set()

    def apply(self, event: SystemEvent) -> CollectionDrop | None:
        """Take in an event; what it says of documents.

        What is gone keeps its name, for the changes that are still under way.
        """
        cid = event.collection_id
        match event.event:
            case SystemEventId.CREATE_SCOPE if event.scope_id is not None:
                self._scopes[event.scope_id] = event.name
            case SystemEventId.CREATE_COLLECTION if cid is not None:
                scope = self._scopes.get(event.scope_id or 0)
                if scope is not None:
                    self._names[cid] = CollectionName(scope, event.name)
                place = event.vbucket, cid
                if place in self._begun:
                    # Reported for a collection that was there before, it means that it was emptied.
                    return self._drop(event, cid)
                self._begun.add(place)
            case SystemEventId.DROP_COLLECTION if cid is not None:
                return self._drop(event, cid)
        return None

    @property
    def known(self) -> dict[int, CollectionName]:
        """All names, but that of the default collection."""
        return {cid: name for cid, name in self._names.items() if cid and name is not None}

    def learn(self) -> None:
        """Ask the cluster once, if it answers: who learns of a drop later finds no name there."""
        self._ask(())

    def _drop(self, event: SystemEvent, cid: int) -> CollectionDrop:
        name = self.of([cid])[0]
        scope, collection = (None, None) if name is None else (name.scope, name.name)
        return CollectionDrop(event.vbucket, event.seqno, cid, scope, collection)

    def of(self, ids: Sequence[int]) -> list[CollectionName | None]:
        """Names; None of a collection that nobody knows any more."""
        if any(cid not in self._names for cid in ids):
            self._ask(ids)
        return [self._names.get(cid) for cid in ids]

    def _ask(self, ids: Sequence[int]) -> None:
        try:
            manifest = self._fetch()
        except CbframeError:
            # The changes are what matters: they go on without names, and the next ones ask again.
            return
        if manifest is not None:
            self._names |= manifest.collections
            self._scopes |= {number: name for name, number in manifest.scopes.items()}
        for cid in ids:
            self._names.setdefault(cid, None)


class ChangeRows:
    """Gives rows their public form."""

    def __init__(
        self,
        raw: pa.Schema,  # schema of what arrives
        metadata: Sequence[str],  # names that were asked for
        directory: Directory,
        key_prefix: bytes | None,  # keep only keys that begin so
        keys: KeyForm,  # their form
        *,
        transaction_records: bool = False,  # whether changes of records of transactions are kept
    ) -> None:
        self._keys = keys
        self._keeps_transactions = transaction_records
        self.left_out = 0
        self._prefix = key_prefix
        self._directory = directory
        self._raw = raw
        asked = [f"_cb_{name}" for name in metadata]
        columns = [name for name in (VBUCKET, SEQNO) if name not in asked]
        columns += [name for name in asked if name != KEY]
        fields = [
            pa.field(CHANGE_TYPE, pa.dictionary(pa.int8(), pa.string())),
            pa.field(KEY, KEY_TYPES[keys], nullable=False),
        ]
        for name in columns:
            kind = METADATA_TYPES.get(name)
            fields.append(pa.field(name, _NAME if kind is None else kind))
        self.schema = pa.schema([*fields, pa.field(VALUE, pa.binary())])

    def reduce(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Only the rows that are wanted."""
        if self._prefix is not None:
            batch = batch.filter(pc.starts_with(batch.column(KEY), self._prefix))
        if not self._keeps_transactions and (theirs := of_transactions(batch.column(KEY))).any():
            self.left_out += int(theirs.sum())
            batch = batch.filter(pa.array(~theirs))
        ids = batch.column(COLLECTION_ID).to_numpy()
        if ids.any():
            unique, codes = np.unique(ids, return_inverse=True)
            names = self._directory.of(unique.tolist())
            ours = np.array([name is None or name.scope != SYSTEM_SCOPE for name in names])
            if not ours.all():
                batch = batch.filter(pa.array(ours[codes]))
        return batch

    def formed(
        self, batches: Sequence[pa.RecordBatch]
    ) -> tuple[pa.RecordBatch, npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
        """One batch of several; and of each row the datatype, and the collection's id."""
        table = pa.Table.from_batches(batches, self._raw).combine_chunks()
        arrays = {name: _array(table[name]) for name in table.column_names}
        arrays[KEY] = formed(arrays[KEY], self._keys)
        kinds = _KIND[arrays[OPCODE].to_numpy()]
        arrays[CHANGE_TYPE] = pa.DictionaryArray.from_arrays(pa.array(kinds), CHANGE_TYPES)
        if kinds.any():
            rows = pa.array(np.arange(len(kinds)), mask=kinds != 0)
            arrays[VALUE] = arrays[VALUE].take(rows)
        if not {"_cb_scope", "_cb_collection"}.isdisjoint(self.schema.names):
            unique, codes = np.unique(arrays[COLLECTION_ID].to_numpy(), return_inverse=True)
            names = self._directory.of(unique.tolist())
            for column, values in (
                ("_cb_scope", [None if name is None else name.scope for name in names]),
                ("_cb_collection", [None if name is None else name.name for name in names]),
            ):
                arrays[column] = pa.array(values, pa.string()).take(pa.array(codes)).dictionary_encode()
        record = pa.RecordBatch.from_arrays([arrays[name] for name in self.schema.names], schema=self.schema)
        return record, arrays[DATATYPE].to_numpy(), arrays[COLLECTION_ID].to_numpy()


def _array(column: pa.ChunkedArray) -> pa.Array:
    """The one chunk of a column."""
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
