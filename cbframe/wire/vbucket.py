"""Which vbucket a key lives in."""

from __future__ import annotations

from zlib import crc32


def vbucket_of(key: bytes, vbuckets: int) -> int:
    """Number of the vbucket that holds `key` (without its collection prefix).

    The modulo, not a mask: serverless buckets have 48 vbuckets, which is no power of two.
    """
    return ((crc32(key) >> 16) & 0x7FFF) % vbuckets
