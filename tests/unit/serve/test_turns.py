"""Turns: little work first, none waits for ever, none is lost."""

import threading

import pytest

from sheen.serve.normalizers import Client, Turns


def test_one_who_asks_for_little_goes_before_those_who_ask_for_much() -> None:
    turns: Turns[str] = Turns()
    large = [Client() for _ in range(6)]
    for number, client in enumerate(large):
        turns.put(client, 400, f"large {number}")
    assert turns.take() == "large 0"
    turns.put(large[0], 400, "large 0 again")
    turns.put(Client(), 20, "small")
    order = [turns.take() for _ in range(7)]
    assert order == ["small", *(f"large {n}" for n in range(1, 6)), "large 0 again"]


def test_clients_with_as_much_to_do_take_turns() -> None:
    turns: Turns[str] = Turns()
    first, second = Client(), Client()
    for number in range(3):
        turns.put(first, 10, f"first {number}")
    for number in range(3):
        turns.put(second, 10, f"second {number}")
    assert [turns.take() for _ in range(6)] == [
        "first 0", "second 0", "first 1", "second 1", "first 2", "second 2",
    ]  # fmt: skip


def test_no_client_waits_for_ever() -> None:
    """However many come anew with less to do."""
    turns: Turns[int] = Turns()
    turns.put(Client(), 400, -1)
    served = []
    for number in range(100):
        turns.put(Client(), 20, number)
        served.append(turns.take())
    assert -1 in served
    assert served.index(-1) <= 2 * 400 / 20


def test_closing_ends_the_waiting_and_gives_back_what_waits() -> None:
    turns: Turns[int] = Turns()
    taken: list[int | None] = []
    waiting = threading.Thread(target=lambda: taken.append(turns.take()))
    waiting.start()
    assert turns.close() == []
    waiting.join()
    assert taken == [None]
    with pytest.raises(RuntimeError, match="the queue is closed"):
        turns.put(Client(), 1, 1)
    full: Turns[int] = Turns()
    full.put(Client(), 1, 1)
    assert full.close() == [1]
    assert full.take() is None
