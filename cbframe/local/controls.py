"""Options of a DCP connection: what DCP_CONTROL sets, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

from cbframe.local.bucket import Bucket
from cbframe.local.stream import Style
from cbframe.wire.constants import Feature, OpenFlag, Status
from cbframe.wire.requests import DcpControl

_BY_PREFIX = frozenset(
    {
        "backfill_order",
        "connection_buffer_size",
        "stream_buffer_size",
        "enable_noop",
        "force_value_compression",
        "supports_hifi_MFU",
        "set_noop_interval",
        "set_priority",
        "enable_expiry_opcode",
    }
)
"""Of these a node compares as many letters as it was sent: "e" is "enable_noop"."""
_BOOLEANS = ("true", "false")
_ORDERS = ("round-robin", "sequential")
_LONGEST_NOOP_INTERVAL = 10_800
_SHORTEST_NOOP_INTERVAL_OF_8 = 0.1
_DEFAULT_NOOP_INTERVAL = 20.0


class Controls:
    """Options of one connection, with the values they have before anything is set."""

    def __init__(self, bucket: Bucket, flags: int, features: frozenset[int]) -> None:
        self._bucket = bucket
        self._is_8 = bucket.release.is_8
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
        # Without an effect here.
        self.cursor_dropping = self.hifi_mfu = self.v7_status_codes = False
        # In the order in which a node compares.
        self._setters: dict[str, Callable[[str], Status]] = {
            "backfill_order": lambda value: Status.SUCCESS if value in _ORDERS else Status.EINVAL,
            "connection_buffer_size": self._set_buffer_size,
            "stream_buffer_size": lambda _: Status.NOT_SUPPORTED,
            "enable_noop": self._switch("noop"),
            "force_value_compression": self._switch("force_snappy"),
            "supports_cursor_dropping": self._switch("cursor_dropping"),
            "supports_cursor_dropping_vulcan": self._switch("cursor_dropping"),
            "supports_hifi_MFU": self._switch("hifi_mfu"),
            "set_noop_interval": self._set_interval,
            "set_priority": self._set_priority,
            "send_stream_end_on_client_close_stream": self._set_end_on_close,
            "enable_expiry_opcode": self._switch("expirations"),
            "enable_stream_id": self._set_stream_ids,
            "enable_sync_writes": self._set_sync_writes,
            "consumer_name": self._set_consumer_name,
            "enable_out_of_order_snapshots": self._set_oso,
            "include_deleted_user_xattrs": self._ask_deleted_user_xattrs,
            "v7_dcp_status_codes": self._turn_on("v7_status_codes"),
            "flatbuffers_system_events": self._turn_on("flatbuffers"),
            "change_streams": self._set_history,
        }
        if bucket.marker_version == "2.2":
            self._setters["max_marker_version"] = self._set_marker_version

    def set(self, message: DcpControl) -> tuple[Status, str]:
        """Set an option; the status, and the words that go with it or none."""
        if not message.key or not message.value:
            return Status.EINVAL, f"Request must include {'value' if message.key else 'key'}"
        asked = message.key
        same = (key for key in self._setters if key == asked or (key in _BY_PREFIX and key.startswith(asked)))
        key = next(same, None)
        if key is None:
            return Status.EINVAL, ""
        if key == "force_value_compression" and Feature.SNAPPY not in self._features:
            return Status.EINVAL, (
                "The ctrl parameter force_value_compression is only supported if datatype snappy is enabled "
                "on the connection"
            )
        status = self._setters[key](message.value)
        if key == "backfill_order" and status is not Status.SUCCESS:
            # The real node names the option, as it was sent, instead of the value.
            return status, f"Unsupported value '{asked}' for ctrl parameter '{key}'"
        return status, ""

    def style(self) -> Style:
        """How the streams that begin now announce their snapshots."""
        # A replica, which has a name, gets more than others with sync writes.
        replicates = bool(self.sync_writes and self.consumer_name)
        memory = "v2.0" if replicates else "v1"
        disk = "v2.2" if self.marker_v22 else memory
        return Style(disk, memory, self.oso, self.oso_advanced, replicates)

    def _switch(self, attribute: str) -> Callable[[str], Status]:
        """Set an option to whether the value is "true", whatever else it is."""

        def switch(value: str) -> Status:
            if not self._is_8 and value not in _BOOLEANS:
                return Status.EINVAL
            setattr(self, attribute, value == "true")
            return Status.SUCCESS

        return switch

    def _turn_on(self, attribute: str) -> Callable[[str], Status]:
        """Set an option that 8.0 does not let clients unset."""
        switch = self._switch(attribute)
        return lambda value: Status.EINVAL if self._is_8 and value != "true" else switch(value)

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
        shortest = _SHORTEST_NOOP_INTERVAL_OF_8 if self._is_8 else 0
        if not shortest <= interval <= _LONGEST_NOOP_INTERVAL:
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
        return Status.SUCCESS if self._is_8 or value in _BOOLEANS else Status.EINVAL

    def _set_consumer_name(self, value: str) -> Status:
        self.consumer_name = value
        return Status.SUCCESS

    def _ask_deleted_user_xattrs(self, value: str) -> Status:
        granted = bool(self._flags & OpenFlag.INCLUDE_DELETED_USER_XATTRS)
        return Status.SUCCESS if granted and value == "true" else Status.EINVAL

    def _set_stream_ids(self, value: str) -> Status:
        if self.sync_writes and value == "true":
            return Status.NOT_SUPPORTED
        return self._turn_on("stream_ids")(value)

    def _set_sync_writes(self, value: str) -> Status:
        if self.stream_ids and value == "true":
            return Status.NOT_SUPPORTED
        return self._turn_on("sync_writes")(value)

    def _set_oso(self, value: str) -> Status:
        if value not in {"true", "true_with_seqno_advanced"}:
            return Status.EINVAL
        self.oso, self.oso_advanced = True, value != "true"
        return Status.SUCCESS

    def _set_history(self, value: str) -> Status:
        if not self._bucket.history and value == "true":
            return Status.NOT_SUPPORTED
        return self._turn_on("history")(value)

    def _set_marker_version(self, value: str) -> Status:
        if value != "2.2":
            return Status.EINVAL
        if Feature.COLLECTIONS not in self._features:
            return Status.NOT_SUPPORTED
        self.marker_v22 = True
        return Status.SUCCESS
