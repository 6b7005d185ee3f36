"""The last things that happened on a connection, for the moment at which it breaks."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from cbframe.dcp import events as dcp
from cbframe.dcp.streams import Stream


@dataclass(slots=True)
class _Entry:
    vbucket: int | None
    what: str
    times: int = 1

    def __str__(self) -> str:
        where = "" if self.vbucket is None else f"vbucket {self.vbucket} "
        return f"{where}{self.what}{f' ×{self.times}' if self.times > 1 else ''}"


class Trace:
    """A ring of events; the same one again is counted, not repeated. Never holds a document's key."""

    def __init__(self, capacity: int) -> None:
        self._entries: deque[_Entry] = deque(maxlen=max(0, capacity))

    def note(self, vbucket: int | None, what: str) -> None:
        """Add what happened, to a vbucket or to the connection."""
        last = self._entries[-1] if self._entries else None
        if last is not None and last.vbucket == vbucket and last.what == what:
            last.times += 1
        else:
            self._entries.append(_Entry(vbucket, what))

    def event(self, event: dcp.Event) -> None:
        """Add an event of the connection, by its name."""
        stream: Stream | None = getattr(event, "stream", None)
        self.note(None if stream is None else stream.vbucket, type(event).__name__)

    def lines(self) -> list[str]:
        """Oldest first; callable from any thread."""
        return [str(entry) for entry in list(self._entries)]

    def __str__(self) -> str:
        return ", ".join(self.lines()) or "nothing"
