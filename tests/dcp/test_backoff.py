"""The tables of the reference, in zero time."""

from __future__ import annotations

import pytest

from cbframe.dcp.timers import Backoff, exponential_backoff_loop
from cbframe.errors import ConfigurationError


def run(results: list[int], *settings: float) -> tuple[int, list[float]]:
    """Number of calls, and what was slept in milliseconds."""
    left = list(results)
    sleeps: list[float] = []
    exponential_backoff_loop(lambda: left.pop(0), *settings, sleep=lambda s: sleeps.append(s * 1000))  # type: ignore[arg-type]
    return len(results) - len(left), sleeps


@pytest.mark.parametrize(
    ("results", "calls", "sleeps"),
    [
        ([-1, 0], 1, []),
        ([1, -1], 2, []),
        ([1, 0, -1], 3, [100]),
        ([0, 0, 0, 0, 0, 0, 0, 0, -1], 9, [100, 150, 225, 337, 505, 757, 1000, 1000]),
        ([0, 0, 1, 0, 0, -5], 6, [100, 150, 100, 150]),
    ],
)
def test_loop(results: list[int], calls: int, sleeps: list[float]) -> None:
    assert run(results) == (calls, pytest.approx(sleeps))


@pytest.mark.parametrize("factor", [1e6, 1e300, float("inf")])
def test_huge_factor(factor: float) -> None:
    assert run([1, 0, 0, 0, -1], 1, factor, 1) == (5, [1, 1, 1])
    assert run([0, 0, -1], 0, factor, 1) == (3, [0, 0])


def test_first_sleep_may_be_over_the_maximum() -> None:
    assert run([0, 0, -1], 50, 2, 10) == (3, [50, 10])


def test_errors_of_the_function_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        exponential_backoff_loop(lambda: 1 // 0, sleep=lambda _: None)


def test_backoff() -> None:
    backoff = Backoff()
    assert [backoff.next_delay() for _ in range(3)] == [0.1, 0.15, 0.225]
    assert "next 337 ms" in repr(backoff)
    backoff.reset()
    assert backoff.next_delay() == 0.1


@pytest.mark.parametrize("settings", [(-1, 1.5, 10), (1, 1.5, -1), (1, 0.5, 10), (1, float("nan"), 10)])
def test_wrong_settings(settings: tuple[int, float, int]) -> None:
    with pytest.raises(ConfigurationError):
        Backoff(*settings)
