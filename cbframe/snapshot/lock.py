"""One writer at a time."""

from __future__ import annotations

import json
import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import Any

from cbframe.errors import SnapshotError
from cbframe.scan.moment import Clock, utc_now
from cbframe.snapshot.store import LocalStore, Store, make_folder
from cbframe.system import locked

LOCK = "lock.json"


@contextmanager
def writing(store: Store, *, clock: Clock = utc_now, break_lock: bool = False) -> Iterator[None]:
    """Be the only writer of a snapshot.

    In a local folder the system holds the lock, and lets go of it when the process ends, however it
    ends. Elsewhere it is a file, which a writer that is killed leaves behind.
    """
    mine = {
        "host": platform.node(),
        "pid": os.getpid(),
        "since": clock().isoformat(timespec="seconds"),
        "token": uuid.uuid4().hex,
    }
    hold = _held_by_system if isinstance(store, LocalStore) else _held_by_file
    with hold(store, mine, clock, break_lock):
        yield


@contextmanager
def _held_by_system(store: Store, mine: dict[str, Any], clock: Clock, _break_lock: bool) -> Iterator[None]:
    assert isinstance(store, LocalStore)
    path = store.path(LOCK)
    with store.reporting(LOCK, "lock the snapshot"):
        make_folder(path.parent)
        file = path.open("a+b")
    with file, ExitStack() as stack:
        try:
            stack.enter_context(locked(file))
        except BlockingIOError:
            file.seek(0)
            raise _locked(store, file.read(), clock, killed="ended: the lock ends with it") from None
        file.truncate(0)
        file.write(json.dumps(mine).encode())
        file.flush()
        yield
        # Not deleted: whoever waits for this very file would lock one that nobody sees any more.
        file.truncate(0)


@contextmanager
def _held_by_file(store: Store, mine: dict[str, Any], clock: Clock, break_lock: bool) -> Iterator[None]:
    data = json.dumps(mine).encode()
    if break_lock:
        store.remove(LOCK)
    try:
        store.publish(LOCK, data)
    except FileExistsError:
        try:
            owner = store.read(LOCK)
        except FileNotFoundError:
            owner = b""
        killed = "dead: then give break_lock=True"
        raise _locked(store, owner, clock, killed=killed) from None
    try:
        yield
    finally:
        # It may be another's by now, who broke ours.
        with suppress(FileNotFoundError):
            if store.read(LOCK) == data:
                store.remove(LOCK)


def _locked(store: Store, owner: bytes, clock: Clock, *, killed: str) -> SnapshotError:
    holder = "another writer"
    try:
        fields = json.loads(owner)
        since = datetime.fromisoformat(fields["since"])
        holder = (
            f"process {int(fields['pid'])} on {fields['host']}, since {since:%Y-%m-%d %H:%M:%S} UTC "
            f"({_age((clock() - since).total_seconds())})"
        )
    except (ValueError, KeyError, TypeError):
        pass  # it has just begun, or just ended
    return SnapshotError(
        f"the snapshot is being written by {holder}",
        path=store.root,
        hint=f"wait until it is done, or see whether it is {killed}",
    )


def _age(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{max(0, int(seconds))} s"
