"""From many threads to one: nothing is lost, and news take room once."""

from __future__ import annotations

import threading

from cbframe.dcp.receiver import Handover, MergingHandover
from cbframe.scan.stream import Switch


def test_a_wait_lasts_until_there_is_enough() -> None:
    items: Handover[str] = Handover()
    items.enough = 10
    items.put("a", 4)
    items.put("b", 5)
    woken = threading.Event()
    found: list[str] = []

    def take() -> None:
        found.extend(items.take(20))
        woken.set()

    assert items.take(0.0) == ["a", "b"]  # all that is there, when the time is over
    items.put("c", 9)
    thread = threading.Thread(target=take)
    thread.start()
    assert not woken.wait(0.05)
    items.put("d", 1)
    assert woken.wait(20)
    thread.join()
    assert found == ["c", "d"]


def test_a_wait_for_enough_ends_when_woken() -> None:
    items: Handover[str] = Handover()
    items.enough = 10
    items.put("a", 1)
    items.wake()
    assert items.take(20) == ["a"]


def test_news_replace_what_waits_of_the_same_key() -> None:
    items: MergingHandover[str] = MergingHandover()
    items.news(1, "a")
    items.news(2, "b")
    items.news(1, "c")
    assert items.take() == ["c", "b"]
    items.news(1, "d")
    items.put("e", [1])
    items.news(1, "f")
    items.news(2, "g")
    items.put("h", [2])
    items.news(1, "i")
    assert items.take() == ["d", "e", "i", "g", "h"]
    assert items.take() == []


def test_however_long_nobody_comes_news_take_room_once() -> None:
    items: MergingHandover[int] = MergingHandover()
    for n in range(10_000):
        items.news(n % 7, n)
    assert sorted(items.take()) == list(range(9993, 10_000))


def test_a_wait_ends_with_an_item_or_when_woken() -> None:
    items: MergingHandover[int] = MergingHandover()
    items.wait(0.0)
    thread = threading.Thread(target=lambda: items.put(1, ()))
    thread.start()
    items.wait(20)
    thread.join()
    assert items.take() == [1]
    items.wake()
    items.wait(20)
    assert items.take() == []


def test_many_threads() -> None:
    items: MergingHandover[tuple[int, int]] = MergingHandover()

    def work(number: int) -> None:
        for n in range(500):
            items.put((number, n), [number])
            items.news(number, (number, -n))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    found: list[tuple[int, int]] = []
    while any(thread.is_alive() for thread in threads):
        found += items.take()
    found += items.take()
    for number in range(4):
        mine = [n for who, n in found if who == number]
        assert [n for n in mine if n > 0] == list(range(1, 500))
        assert mine[-1] == -499


def test_a_switch_puts_off() -> None:
    switch = Switch()
    done: list[int] = []
    switch.when_off(lambda: done.append(1))
    assert done == [1]
    switch.on()
    assert switch
    switch.when_off(lambda: done.append(2))
    switch.on()
    switch.when_off(lambda: done.append(3))
    assert done == [1]
    switch.off()
    assert not switch
    assert done == [1, 2, 3]
    switch.off()
    assert done == [1, 2, 3]
