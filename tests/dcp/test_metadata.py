"""The JSON of the reference, in both directions."""

from __future__ import annotations

import pytest

from cbframe.dcp.positions import VBucketMetaData
from cbframe.errors import ConfigurationError
from cbframe.wire.constants import MAX_SEQNO
from cbframe.wire.failover import FailoverEntry

LOG = (FailoverEntry(MAX_SEQNO, 5), FailoverEntry(11, 0))


def test_round_trip() -> None:
    metadata = VBucketMetaData(0, 0, 3, MAX_SEQNO, LOG)
    assert VBucketMetaData.from_json(metadata.to_json()) == metadata


def test_what_the_reference_writes() -> None:
    go = (
        b'{"seqStart":0,"seqEnd":0,"snapStart":3,"snapEnd":9,"failOverLog":[[18446744073709551615,5],[11,0]]}'
    )
    assert VBucketMetaData.from_json(go) == VBucketMetaData(0, 0, 3, 9, LOG)
    assert VBucketMetaData(0, 0, 3, 9, LOG).to_json() == go
    assert VBucketMetaData.from_json(b'{"snapEnd":9,"failOverLog":null}') == VBucketMetaData(snap_end=9)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"snapEnd":"9"}',
        b'{"snapEnd":-1}',
        b'{"snapEnd":1.5}',
        b'{"snapEnd":1e999}',
        b'{"snapEnd":18446744073709551616}',
        b'{"failOverLog":[[1]]}',
        b'{"failOverLog":5}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_cannot_be_read(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="not readable"):
        VBucketMetaData.from_json(data)


@pytest.mark.parametrize(("seqno", "vbuuid"), [(0, 0), (4, 11), (5, MAX_SEQNO), (9, MAX_SEQNO)])
def test_the_history_of_a_seqno(seqno: int, vbuuid: int) -> None:
    assert VBucketMetaData(failover_log=LOG).vbuuid_at(seqno) == vbuuid
    assert VBucketMetaData().vbuuid_at(seqno) == 0
