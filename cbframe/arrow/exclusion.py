"""Documents that a server sends and a read leaves out: expired ones, and records of transactions.

They are marked where they come, and removed when the read is complete: where the newest version of a document
is left out, no older version may take its place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cbframe.arrow.columns import DELETION, EXPIRATION

EXPIRED, TRANSACTION_RECORD = np.uint8(0xF0), np.uint8(0xF1)
"""Marks in the column of opcodes; DCP has none of these."""
TRANSACTION_PREFIX = b"_txn:"

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many documents were left out."""

    expired: int = 0  # their expiry had passed, and the server had not removed them yet
    transaction_records: int = 0  # their keys begin with `_txn:`

    @classmethod
    def of(cls, marked: npt.NDArray[np.uint8]) -> LeftOut:
        """Of the opcodes of the newest versions of documents."""
        return cls(int((marked == EXPIRED).sum()), int((marked == TRANSACTION_RECORD).sum()))

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.expired + other.expired, self.transaction_records + other.transaction_records)


NOTHING = LeftOut()


def of_transactions(keys: pa.Array | pa.ChunkedArray) -> _Mask:
    """Which keys are those of records that transactions keep in the bucket."""
    # Of text the prefix is text.
    prefix = TRANSACTION_PREFIX if pa.types.is_binary(keys.type) else TRANSACTION_PREFIX.decode()
    found: _Mask = pc.starts_with(keys, prefix).to_numpy(zero_copy_only=False)
    return found


def has_expired(expiry: npt.NDArray[np.uint32], moment: int) -> _Mask:
    """Which documents a GET does not find any more at a moment, in seconds since the epoch; 0 is never.

    Within the second of its expiry a node still returns a document.
    """
    found: _Mask = (expiry != 0) & (expiry < moment)
    return found


def is_document(opcode: npt.NDArray[np.uint8]) -> _Mask:
    """Which rows are documents of the server, also those that are left out."""
    found: _Mask = (opcode != DELETION) & (opcode != EXPIRATION)
    return found
