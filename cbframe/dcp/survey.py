"""What a look asks of a node: where its vbuckets are, and about how much is in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Container, Sequence
from typing import NamedTuple

from cbframe.dcp.handshake import SEQNOS, Login, Steps, high_seqnos, log_in, require
from cbframe.dcp.positions import Position
from cbframe.errors import ROLES_HINT
from cbframe.wire.constants import Opcode, OpenFlag, Status
from cbframe.wire.framing import Frame
from cbframe.wire.messages import DcpOpen, GetFailoverLog, Plain, parse_failover_log

_DETAILS = Plain(Opcode.STAT, b"vbucket-details")
_LINE = re.compile(rb"vb_([0-9]{1,5}):(num_items|db_data_size)")
_NUMBER = re.compile(rb"[0-9]{1,19}")
"""What is not of this form is no number that could be meant."""


class Size(NamedTuple):
    """About how much is in a vbucket, all collections together; None for what the node does not tell."""

    documents: int | None  # documents that exist
    bytes: int | None  # what takes up the disk, as it is stored: compressed, and with keys and metadata


TIME = Plain(Opcode.STAT)
"""Asks for statistics of the node itself; its time of day is one of some hundred lines."""
_YEAR_10000 = 253_402_300_800


def time_of(answer: Frame) -> int | None:
    """Seconds since the epoch, if the answer to `TIME` is the line that has them."""
    if answer.status != Status.SUCCESS or answer.key != b"time" or not _NUMBER.fullmatch(answer.value):
        return None
    seconds = int(answer.value)
    return seconds if seconds < _YEAR_10000 else None


def survey_time(login: Login) -> Steps[int | None]:
    """Log in and ask what time it is at the node; None if the user may not see statistics."""
    yield from log_in(login, then=lambda _: [TIME.frame()])
    found: int | None = None
    while True:
        answer = yield ()
        found = time_of(answer) if found is None else found
        if not answer.key or answer.status != Status.SUCCESS:
            return found


UNKNOWN = Size(None, None)


def survey(login: Login, wanted: Container[int]) -> Steps[dict[int, Position]]:
    """Log in and ask where each of the wanted vbuckets is that the node has."""
    yield from log_in(login, then=lambda _: [SEQNOS])
    there = high_seqnos((yield ()))
    vbuckets = sorted(vb for vb in there if vb in wanted)
    found = yield from _positions(vbuckets, Opcode.GET_FAILOVER_LOG)
    if found is None:
        # Who may not read the whole bucket may ask a producer still.
        opening = DcpOpen(f"cbframe:look:{login.nonce()}", OpenFlag.PRODUCER).frame()
        found = yield from _positions(vbuckets, Opcode.DCP_GET_FAILOVER_LOG, opening)
    assert found is not None, "the second refusal is an error"
    return found


def _positions(vbuckets: Sequence[int], opcode: Opcode, *before: Frame) -> Steps[dict[int, Position] | None]:
    """Histories and high seqnos, after requests `before`; None where the user may not ask in this way."""
    # Seqnos last: one with a history that ended meanwhile is seen to be void later on. The other way round,
    # a new history would have a seqno that it never reached, and nobody could tell.
    asked: list[Frame] = [*before, *(GetFailoverLog(vb, opcode).frame() for vb in vbuckets), SEQNOS]
    for _ in before:
        require((yield asked), "DCP_OPEN was refused", ROLES_HINT)
        asked = []
    histories: dict[int, int] = {}
    refused = False
    for vb in vbuckets:
        answer = yield asked
        asked = []
        if answer.status == Status.NOT_MY_VBUCKET:
            continue  # it went meanwhile: another node has it
        if answer.status == Status.EACCESS and not before:
            refused = True
            continue
        require(answer, "the failover log was refused", ROLES_HINT)
        log = parse_failover_log(answer.value)
        if log:
            histories[vb] = log[0].vbuuid
    seqnos = high_seqnos((yield asked))
    if refused:
        return None
    return {vb: Position.at(vbuuid, seqnos[vb]) for vb, vbuuid in histories.items() if vb in seqnos}


def survey_sizes(login: Login, vbuckets: Collection[int]) -> Steps[dict[int, Size]]:
    """Log in and ask how much is in vbuckets that the node has.

    A node that refuses is one that does not say, whatever the reason: no right to statistics, or no such
    statistics. Nothing but an estimate depends on it.
    """
    yield from log_in(login, then=lambda _: [_DETAILS.frame()])
    documents: dict[int, int] = {}
    stored: dict[int, int] = {}
    found = {b"num_items": documents, b"db_data_size": stored}
    while True:
        answer = yield ()
        if answer.status != Status.SUCCESS:
            return dict.fromkeys(vbuckets, UNKNOWN)
        if not answer.key:
            return {vb: Size(documents.get(vb), stored.get(vb)) for vb in vbuckets}
        # There are some 70 lines for each vbucket, replicas among them: of most the end is enough.
        if answer.key.endswith((b":num_items", b":db_data_size")):
            line = _LINE.fullmatch(answer.key)
            if line and int(line[1]) in vbuckets and _NUMBER.fullmatch(answer.value):
                found[line[2]][int(line[1])] = int(answer.value)
