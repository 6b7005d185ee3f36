"""What became of a handshake, of stream requests and of messages out of place, in counters."""

from __future__ import annotations

from cbframe.dcp.counters import NodeStats
from cbframe.dcp.streams import StreamEvent
from cbframe.errors import AuthFailError, CbframeError
from cbframe.wire.constants import Opcode, Status
from cbframe.wire.framing import Frame

OUT_OF_PLACE = {
    StreamEvent.ACCEPTED: "tot_upr_stream_req_res_state_err",
    StreamEvent.REFUSED: "tot_upr_stream_req_res_state_err",
    StreamEvent.MARKER: "tot_upr_snapshot_state_err",
    StreamEvent.ITEM: "tot_upr_data_change_state_err",
    StreamEvent.END: "tot_upr_stream_end_state_err",
    StreamEvent.CLOSED: "tot_upr_close_stream_res_state_err",
}
"""What counts an event that a stream in its state cannot have."""
REFUSALS: dict[int, str] = {
    Status.ROLLBACK: "tot_upr_stream_req_res_rollback",
    Status.NOT_MY_VBUCKET: "tot_upr_stream_req_res_fail_not_my_vbucket",
    Status.ERANGE: "tot_upr_stream_req_res_fail_erange",
    Status.ENOMEM: "tot_upr_stream_req_res_fail_enomem",
}
"""What counts a stream request that was refused with a status, besides the sum."""
_SASL = (Opcode.SASL_LIST_MECHS, Opcode.SASL_AUTH, Opcode.SASL_STEP)


class HandshakeTally:
    """Counts the steps of one connection's handshake, and what it ended with."""

    def __init__(self, stats: NodeStats) -> None:
        self._stats = stats
        self._last = -1
        self._user = False

    def awaits(self, opcode: int) -> None:
        """The next answer is to a request of this kind."""
        stats = self._stats
        if opcode in _SASL and not self._user:
            self._user = True
            stats.tot_worker_auth += 1
        elif opcode == Opcode.SELECT_BUCKET:
            if self._user:
                stats.tot_worker_auth_ok += 1
            else:
                stats.tot_worker_authenticate_memcached_conn += 1
        self._last = opcode

    def answered(self, answer: Frame) -> None:
        """The answer is here."""
        stats = self._stats
        if answer.opcode == Opcode.DCP_CONTROL:
            stats.tot_upr_control += 1
            stats.tot_upr_control_err += answer.status != Status.SUCCESS
        elif answer.opcode == Opcode.SELECT_BUCKET and answer.status == Status.SUCCESS and not self._user:
            stats.tot_worker_authenticate_memcached_conn_ok += 1

    def broke(self, error: CbframeError) -> None:
        """The connection is over before it was ready."""
        stats, last = self._stats, self._last
        if last in _SASL:
            if isinstance(error, AuthFailError):
                stats.tot_worker_auth_fail += 1
            else:
                stats.tot_worker_auth_err += 1
        elif last == Opcode.HELLO:
            stats.tot_handshake_err += 1
        elif last == Opcode.SELECT_BUCKET:
            stats.tot_select_bucket_err += 1
            stats.tot_worker_authenticate_memcached_conn_err += not self._user
        else:
            stats.tot_worker_upr_open_err += 1
