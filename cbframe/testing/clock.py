"""A clock that goes only when it is told to."""

from __future__ import annotations


class FakeClock:
    """Seconds since some moment; call it to read it."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
