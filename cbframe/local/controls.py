"""Options of a DCP connection: what DCP_CONTROL sets, and what it refuses.

The answers are those of a 7.2 node. Options of later servers are off until the bucket says that it
is one.
"""

from __future__ import annotations

from collections.abc import Callable

from cbframe.local.bucket import Bucket
from cbframe.local.stream import Style
from cbframe.wire.constants import Feature, OpenFlag, Status
from cbframe.wire.requests import DcpControl

_BOOLEANS = {"true": True, "false": False}
_LONGEST_NOOP_INTERVAL = 10_800
_DEFAULT_NOOP_INTERVAL = 20.0


class Controls:
    """Options of one connection, with the values they have before anything is set.

    Parameters
    ----------
    bucket
        Decides about options that not every bucket has.
    flags
        Flags of the connection's DCP_OPEN.
    features
        What HELLO granted.
    """

    def __init__(self, bucket: Bucket, flags: int, features: frozenset[int]) -> None:
        self._bucket = bucket
        self._flags = flags
        self._features = features
        self.buffer_size = 0
        self.noop = False
        self.priority = "medium"
        self.noop_interval = _DEFAULT_NOOP_INTERVAL
        self.expirations = False
        self.end_on_close = False
        self.sync_writes = False
        self.consumer_name = ""
        self.force_snappy = False
        self.flatbuffers = False
        self.oso = self.oso_advanced = False
        self.stream_ids = False
        self.history = False
        self.marker_v22 = False
        # The real node compares as many letters as there are, in this order: "e" is "enable_noop".
        self._setters: dict[str, Callable[[str], Status]] = {
            "connection_buffer_size": self._set_buffer_size,
            "stream_buffer_size": lambda _: Status.NOT_SUPPORTED,
            "enable_noop": self._switch("noop"),
            "set_noop_interval": self._set_interval,
            "set_priority": self._set_priority,
            "supports_cursor_dropping": _one_of("true", "false"),
            "supports_cursor_dropping_vulcan": _one_of("true", "false"),
            "supports_hifi_MFU": _one_of("true", "false"),
            "send_stream_end_on_client_close_stream": self._set_end_on_close,
            "enable_expiry_opcode": self._switch("expirations"),
            "enable_stream_id": self._set_stream_ids,
            "enable_sync_writes": self._set_sync_writes,
            "consumer_name": self._set_consumer_name,
            "include_deleted_user_xattrs": self._ask_deleted_user_xattrs,
            "force_value_compression": self._set_force_snappy,
            "backfill_order": _one_of("round-robin", "sequential"),
            "enable_out_of_order_snapshots": self._set_oso,
            "v7_dcp_status_codes": _one_of("true", "false"),
            "flatbuffers_system_events": self._switch("flatbuffers"),
            "change_streams": self._set_history,
        }
        if bucket.marker_version == "2.2":
            self._setters["max_marker_version"] = self._set_marker_version

    def set(self, message: DcpControl) -> tuple[Status, str]:
        """Set an option; the status, and the words that go with it or none."""
        if not message.key or not message.value:
            return Status.EINVAL, f"Request must include {'value' if message.key else 'key'}"
        key = next((key for key in self._setters if key.startswith(message.key)), None)
        if key is None:
            return Status.EINVAL, ""
        if key == "force_value_compression" and Feature.SNAPPY not in self._features:
            return Status.EINVAL, (
                "The ctrl parameter force_value_compression is only supported if datatype snappy is enabled "
                "on the connection"
            )
        status = self._setters[key](message.value)
        if key == "backfill_order" and status is not Status.SUCCESS:
            # The real node names the option twice, instead of the value.
            return status, f"Unsupported value '{key}' for ctrl parameter '{key}'"
        return status, ""

    def style(self) -> Style:
        """How the streams that begin now announce their snapshots."""
        # A replica, which has a name, is told more than others with sync writes.
        memory = "v2.0" if self.sync_writes and self.consumer_name else "v1"
        disk = "v2.2" if self.marker_v22 else memory
        return Style(disk, memory, self.oso, self.oso_advanced)

    def _switch(self, attribute: str) -> Callable[[str], Status]:
        def switch(value: str) -> Status:
            if value not in _BOOLEANS:
                return Status.EINVAL
            setattr(self, attribute, _BOOLEANS[value])
            return Status.SUCCESS

        return switch

    def _set_buffer_size(self, value: str) -> Status:
        if not value.isdecimal() or int(value) > 0xFFFF_FFFF:
            return Status.EINVAL
        self.buffer_size = int(value)
        return Status.SUCCESS

    def _set_interval(self, value: str) -> Status:
        try:
            interval = float(value)
        except ValueError:
            return Status.EINVAL
        if not 0 <= interval <= _LONGEST_NOOP_INTERVAL:
            return Status.EINVAL
        self.noop_interval = interval
        return Status.SUCCESS

    def _set_priority(self, value: str) -> Status:
        if value not in self._bucket.release.messages_per_send:
            return Status.EINVAL
        self.priority = value
        return Status.SUCCESS

    def _set_end_on_close(self, value: str) -> Status:
        # Once on, it stays on.
        self.end_on_close = self.end_on_close or value == "true"
        return Status.SUCCESS if value in _BOOLEANS else Status.EINVAL

    def _set_consumer_name(self, value: str) -> Status:
        self.consumer_name = value
        return Status.SUCCESS

    def _ask_deleted_user_xattrs(self, value: str) -> Status:
        granted = bool(self._flags & OpenFlag.INCLUDE_DELETED_USER_XATTRS)
        return Status.SUCCESS if granted == (value == "true") else Status.EINVAL

    def _set_stream_ids(self, value: str) -> Status:
        if self.sync_writes:
            return Status.NOT_SUPPORTED
        return self._switch("stream_ids")(value)

    def _set_sync_writes(self, value: str) -> Status:
        if self.stream_ids:
            return Status.NOT_SUPPORTED
        return self._switch("sync_writes")(value)

    def _set_oso(self, value: str) -> Status:
        if value not in {"true", "true_with_seqno_advanced"}:
            return Status.EINVAL
        self.oso, self.oso_advanced = True, value != "true"
        return Status.SUCCESS

    def _set_history(self, value: str) -> Status:
        if not self._bucket.history:
            return Status.NOT_SUPPORTED
        return self._switch("history")(value)

    def _set_marker_version(self, value: str) -> Status:
        if Feature.COLLECTIONS not in self._features:
            return Status.NOT_SUPPORTED
        if value != "2.2":
            return Status.EINVAL
        self.marker_v22 = True
        return Status.SUCCESS

    def _set_force_snappy(self, value: str) -> Status:
        return self._switch("force_snappy")(value)


def _one_of(*values: str) -> Callable[[str], Status]:
    return lambda value: Status.SUCCESS if value in values else Status.EINVAL
