"""Conversations of several questions at a time: as handshakes, generators that never touch the socket.

A conversation yields a :class:`Volley` of requests, and goes on when all are answered.
:func:`~cbframe.dcp.query.converse` does the IO.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from cbframe.dcp.handshake import Steps
from cbframe.wire.frame import Frame

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Volley:
    """Requests that are sent without waiting for the answers to those before.

    Nodes answer in the order in which they were asked, unless a client has agreed to another one: ours
    never does.

    Attributes
    ----------
    frames
        The requests; their opaques are given when they are sent.
    take
        Called with the number of a request and an answer to it, in order. What it raises ends the
        conversation; what it does not keep is forgotten.
    series
        Whether each request has several answers, of which the last one has no key, or is a refusal.
    """

    frames: Sequence[Frame]
    take: Callable[[int, Frame], object]
    series: bool = False


Talk: TypeAlias = Generator[Volley, None, T]


def one_by_one(steps: Steps[T]) -> Talk[T]:
    """A handshake as a conversation: each request waits for the answer to the one before."""
    answers: list[Frame] = []

    def take(_number: int, answer: Frame) -> None:
        answers.append(answer)

    try:
        frame = next(steps)
        while True:
            yield Volley((frame,), take)
            try:
                frame = steps.send(answers.pop())
            except StopIteration as done:
                result: T = done.value
                return result
    finally:
        steps.close()
