"""What a receiver stores for a vbucket, in the reference's own JSON, so that files of both fit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cbframe.errors import ConfigurationError
from cbframe.wire.constants import MAX_SEQNO
from cbframe.wire.failover import FailoverEntry, FailoverLog, entry_at


@dataclass(frozen=True, slots=True)
class VBucketMetaData:
    """Snapshot range and failover log of a vbucket.

    The last seqno is not part of it: it belongs to the data, and is stored with the data.
    """

    seq_start: int = 0
    seq_end: int = 0
    snap_start: int = 0
    snap_end: int = 0
    failover_log: FailoverLog = ()
    purge_seqno: int = 0
    manifest_uid: int = 0

    def to_json(self) -> bytes:
        """The reference's JSON: seqStart, seqEnd, snapStart, snapEnd, failOverLog.

        And purgeSeqno and manifestUid, where there are such; the reference passes over them.
        """
        fields: dict[str, object] = {
            "seqStart": self.seq_start,
            "seqEnd": self.seq_end,
            "snapStart": self.snap_start,
            "snapEnd": self.snap_end,
            "failOverLog": [list(entry) for entry in self.failover_log],
        }
        if self.purge_seqno:
            fields["purgeSeqno"] = self.purge_seqno
        if self.manifest_uid:
            fields["manifestUid"] = self.manifest_uid
        return json.dumps(fields, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> VBucketMetaData:
        """Read what :meth:`to_json`, or the reference, wrote.

        Raises
        ------
        ConfigurationError
            The bytes are no such JSON.
        """
        try:
            fields: dict[str, Any] = json.loads(data)
            log = tuple(FailoverEntry(_u64(u), _u64(s)) for u, s in fields.get("failOverLog") or ())
            names = ("seqStart", "seqEnd", "snapStart", "snapEnd", "purgeSeqno", "manifestUid")
            first, last, start, end, *later = (_u64(fields.get(name, 0)) for name in names)
            return cls(first, last, start, end, log, *later)
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise ConfigurationError(
                "stored vbucket metadata is not readable",
                hint="store what set_metadata gave byte for byte, or start that vbucket anew",
            ) from exc

    def vbuuid_at(self, seqno: int) -> int:
        """The history that `seqno` belongs to; 0 where none is known or needed."""
        entry = entry_at(self.failover_log, seqno)
        return entry.vbuuid if entry is not None and seqno else 0


def _u64(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number <= MAX_SEQNO:
        raise ValueError(f"{number!r} is no unsigned 64-bit integer")
    return number
