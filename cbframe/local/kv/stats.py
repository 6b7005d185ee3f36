"""Lines of the STAT groups that clients ask for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from cbframe.local.bucket import LocalBucket, VBucket
from cbframe.local.items import MUTATION, collection_of, key_of


def stats(bucket: LocalBucket, node: int, group: list[str]) -> list[tuple[str, str]] | None:
    """Names and values of a group, ``NAME [vbucket]``, or of the node; None if it is not known."""
    if not group:
        return [*_general(bucket)]
    groups = _GROUPS
    if bucket.release.is_8:
        groups = _GROUPS | _GROUPS_OF_8
        if group[0] in _ZEROS_OF_8:
            return [(name, _WORDS.get(name, "0")) for name in _ZEROS_OF_8[group[0]]]
        if group[0] in {"collections", "scopes"}:
            return [*_manifest(bucket, scopes=group[0] == "scopes")]
    if group[0] not in groups:
        return None
    wanted = [vb for vb in bucket.vbuckets if node in bucket.map[vb.id]]
    if len(group) > 1:
        wanted = [vb for vb in wanted if str(vb.id) == group[1]]
    lines = groups[group[0]]
    return [
        line for vb in wanted for line in lines(vb, "active" if bucket.map[vb.id][0] == node else "replica")
    ]


def _general(bucket: LocalBucket) -> Iterator[tuple[str, str]]:
    """What a node says of itself, of the hundreds of lines those by which clients tell the time."""
    yield "pid", str(os.getpid())
    yield "time", str(bucket.now())
    yield "pointer_size", "64"


def _seqnos(vb: VBucket, _state: str) -> Iterator[tuple[str, str]]:
    high = vb.high_seqno
    for name, number in (
        ("high_seqno", high),
        ("abs_high_seqno", high),
        ("last_persisted_seqno", high),
        ("uuid", vb.vbuuid),
        ("purge_seqno", vb.purge_seqno),
        ("last_persisted_snap_start", high),
        ("last_persisted_snap_end", high),
        ("high_prepared_seqno", 0),
        ("high_completed_seqno", 0),
        ("max_visible_seqno", high),
    ):
        yield f"vb_{vb.id}:{name}", str(number)


def _details(vb: VBucket, state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}", state
    for name, number in (
        ("num_items", vb.documents),
        ("db_data_size", vb.stored_bytes),
        ("high_seqno", vb.high_seqno),
        ("uuid", vb.vbuuid),
        ("purge_seqno", vb.purge_seqno),
        ("max_visible_seqno", vb.max_visible(vb.high_seqno)),
    ):
        yield f"vb_{vb.id}:{name}", str(number)


def _failovers(vb: VBucket, _state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}:num_entries", str(len(vb.failover))
    yield f"vb_{vb.id}:num_erroneous_entries_erased", "0"
    for i, entry in enumerate(vb.failover):
        yield f"vb_{vb.id}:{i}:id", str(entry.vbuuid)
        yield f"vb_{vb.id}:{i}:seq", str(entry.seqno)


def _names(text: str) -> list[str]:
    return text.split()


_GROUPS = {"vbucket-seqno": _seqnos, "vbucket-details": _details, "failovers": _failovers}

_DETAILS_OF_8 = _names("""
    num_items num_temp_items num_non_resident num_prepared_sync_writes ht_memory ht_num_items
    ht_num_deleted_items ht_num_in_memory_items ht_num_in_memory_non_resident_items ht_num_temp_items
    ht_item_memory ht_item_memory_uncompressed ht_cache_size ht_size num_ejects ops_create ops_delete
    ops_get ops_reject ops_update queue_size queue_memory queue_fill queue_drain queue_age pending_writes
    uuid purge_seqno bloom_filter bloom_filter_size bloom_filter_key_count bloom_filter_memory
    rollback_item_count hp_vb_req_size might_contain_xattrs max_deleted_revid high_completed_seqno
    sync_write_accepted_count sync_write_committed_count sync_write_committed_not_durable_count
    sync_write_aborted_count max_visible_seqno persistence_seqno max_cas max_cas_str total_abs_drift
    total_abs_drift_count drift_ahead_threshold_exceeded drift_behind_threshold_exceeded
    logical_clock_ticks drift_ahead_threshold drift_behind_threshold high_seqno topology
    high_prepared_seqno STATE db_data_size db_file_size db_prepare_size history_items_flushed
""")
"""In the order in which 8.0 has them; the state of the vbucket has no name."""
_WORDS = {
    "bloom_filter": "ENABLED",
    "might_contain_xattrs": "false",
    "max_cas_str": "1970-01-01T00:00:00.0",
    "topology": "null",
    "ep_warmup": "enabled",
    "ep_warmup_state": "done",
    "ep_warmup_thread": "complete",
    "ep_warmup_estimated_value_count": "unknown",
    "ep_secondary_warmup_status": "complete",
    "ep_secondary_warmup_state": "done",
}
"""What is not 0 of the statistics that are made up here."""
_NUMBERS = _names("collections_mem_used items data_size ops_store ops_delete ops_get")
_ZEROS_OF_8 = {
    "dcp": _names("""
        ep_dcp_count ep_dcp_producer_count ep_dcp_consumer_count ep_dcp_total_bytes
        ep_dcp_total_uncompressed_data_size ep_dcp_queue_fill ep_dcp_backfill_disk ep_dcp_backfill_memory
        ep_dcp_items_sent ep_dcp_items_remaining ep_dcp_num_running_backfills ep_dcp_max_running_backfills
        ep_dcp_dead_conn_count
    """),
    "warmup": _names("""
        ep_warmup ep_warmup_state ep_warmup_thread ep_warmup_oom ep_warmup_dups ep_warmup_time
        ep_warmup_key_count ep_warmup_value_count ep_warmup_estimated_key_count
        ep_warmup_estimated_value_count ep_warmup_access_log_keys_loaded
        ep_primary_warmup_min_memory_threshold ep_primary_warmup_min_items_threshold ep_warmup_keys_time
        ep_warmup_estimate_time ep_secondary_warmup_status ep_secondary_warmup_time
        ep_secondary_warmup_state ep_secondary_warmup_min_memory_threshold
        ep_secondary_warmup_min_items_threshold ep_secondary_warmup_estimated_value_count
        ep_warmup_access_log_keys_loaded
    """),
}
"""Groups whose numbers are all 0 here."""


def _details_of_8(vb: VBucket, state: str) -> Iterator[tuple[str, str]]:
    known = {name.partition(":")[2]: number for name, number in [*_seqnos(vb, state), *_details(vb, state)]}
    for name in _DETAILS_OF_8:
        number = known.get(name, _WORDS.get(name, "0"))
        yield (f"vb_{vb.id}", state) if name == "STATE" else (f"vb_{vb.id}:{name}", number)


def _state(vb: VBucket, state: str) -> Iterator[tuple[str, str]]:
    yield f"vb_{vb.id}", state


_GROUPS_OF_8 = {"vbucket-details": _details_of_8, "vbucket": _state}


def _manifest(bucket: LocalBucket, *, scopes: bool) -> Iterator[tuple[str, str]]:
    """What the manifest says, then the numbers of each collection or scope."""
    manifest = bucket.manifest
    items: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for vb in bucket.vbuckets:
        for frame in vb.current(0):
            if frame[1] == MUTATION:
                cid = collection_of(key_of(frame))
                items[cid] += 1
                sizes[cid] += len(frame)
    yield "manifest_uid", f"{manifest.uid:x}"
    newest_first = sorted(manifest.scopes.items(), key=lambda item: -item[1].id)
    numbered: list[tuple[str, list[int], dict[str, str]]] = []
    for name, scope in newest_first:
        prefix, members = f"0x{scope.id:x}", scope.collections
        of_scope = {"name": name, "collections": str(len(members))}
        if scopes:
            yield from ((f"{prefix}:{field}", text) for field, text in of_scope.items())
            numbered.append((prefix, list(members.values()), of_scope))
        for collection, cid in members.items():
            own = f"{prefix}:0x{cid:x}"
            yield f"{own}:name", collection
            if not scopes:
                yield f"{own}:metered", "no"
                yield f"{own}:history", str(manifest.history).lower()
                numbered.append((own, [cid], {"name": collection, "scope_name": name}))
    if not scopes:
        # The default collection, then the newest first.
        numbered.sort(key=lambda entry: (entry[1] != [0], -entry[1][0]))
    for prefix, cids, names in numbered:
        for field in _NUMBERS:
            known = {"items": items, "data_size": sizes}.get(field, Counter())
            yield f"{prefix}:{field}", str(sum(known[cid] for cid in cids))
        yield from ((f"{prefix}:{field}", text) for field, text in names.items())
