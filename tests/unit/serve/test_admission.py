"""Admission: who is let in, what the others are told, and whether that is true."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from sheen.serve.access.admission import LATE_S, LONGEST_WAIT_S, Admission
from sheen.serve.errors import APIError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def refused(admission: Admission, request: str) -> int:
    """When a request that is not let in is told to come back."""
    with pytest.raises(APIError) as refusal, admission.enter(request):
        pass
    assert refusal.value.status == 429
    assert refusal.value.retry_after_s is not None
    return refusal.value.retry_after_s


def test_beyond_the_limit_a_request_is_told_to_come_back_until_one_leaves() -> None:
    admission = Admission(limit=2, slots=1)
    with ExitStack() as first, admission.enter():
        first.enter_context(admission.enter())
        for _ in range(3):  # a refusal takes no place
            with pytest.raises(APIError, match="2 requests") as refused:
                first.enter_context(admission.enter())
            assert refused.value.status == 429
            assert isinstance(refused.value.retry_after_s, int)
            assert refused.value.retry_after_s >= 1
        first.close()
        assert admission.inside == 1
    assert admission.inside == 0


def test_a_request_that_fails_gives_its_place_back() -> None:
    admission = Admission(limit=1, slots=1)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"), admission.enter():
            raise RuntimeError("broken")
    admission.check()


def test_while_it_drains_those_inside_stay_and_nobody_is_let_in() -> None:
    admission = Admission(limit=2, slots=2)
    with admission.enter():
        admission.draining = True
        with pytest.raises(APIError, match="stopping") as refused:
            admission.check()
        assert refused.value.status == 503
        assert refused.value.retry_after_s
        assert admission.inside == 1
    assert admission.inside == 0


# Promises


def test_each_of_a_crowd_has_a_time_of_its_own() -> None:
    admission = Admission(limit=8, slots=8, clock=Clock())
    with ExitStack() as held:
        for number in range(8):
            held.enter_context(admission.enter(str(number)))
        told = [refused(admission, f"late {number}") for number in range(8)]
    assert told == sorted(told)
    assert told[-1] >= 3 * told[0]


def test_a_place_is_kept_for_who_was_promised_it_and_for_nobody_for_long() -> None:
    clock = Clock()
    admission = Admission(limit=3, slots=1, clock=clock)
    with ExitStack() as held, ExitStack() as leaving:
        for number in range(2):
            held.enter_context(admission.enter(str(number)))
        leaving.enter_context(admission.enter("leaves"))
        clock.now += refused(admission, "promised")
        leaving.close()
        refused(admission, "new")
        with admission.enter("promised"):
            assert admission.inside == 3
        clock.now += LONGEST_WAIT_S + LATE_S + 1  # who was told to come has given up
        held.enter_context(admission.enter("newer"))


def test_an_idle_slot_is_kept_for_nobody() -> None:
    clock = Clock()
    admission = Admission(limit=2, slots=2, clock=clock)
    with ExitStack() as held, ExitStack() as leaving:
        held.enter_context(admission.enter("stays"))
        leaving.enter_context(admission.enter("leaves"))
        refused(admission, "promised")
        leaving.close()
        held.enter_context(admission.enter("new"))


def test_a_probe_is_promised_nothing() -> None:
    admission = Admission(limit=2, slots=1, clock=Clock())
    with admission.enter("one"), admission.enter("two"):
        told = set()
        for _ in range(50):
            with pytest.raises(APIError) as refusal:
                admission.check()
            told.add(refusal.value.retry_after_s)
    assert len(told) == 1


# Whether those who come back find a place: the real admission before simulated slots


Service = Callable[[random.Random], float]
SERVICES: dict[str, Service] = {
    "random": lambda rng: rng.expovariate(1 / 5),
    "alike": lambda rng: 5.0,  # all slots end together
    "some are long": lambda rng: rng.lognormvariate(1, 1),
    "short": lambda rng: rng.uniform(0.3, 0.8),
}
CROWDS = ["once", "for ever", "more and more"]
LAG_S = 0.1
END_S = 400.0


class Queue:
    """Clients who come back when they are told to, before slots that take what `service` says."""

    def __init__(self, slots: int, waiting: int, service: Service, crowd: str) -> None:
        self.clock, self.rng = Clock(), random.Random(0)
        self.admission = Admission(slots + waiting, slots, self.clock)
        self.slots, self.service, self.for_ever = slots, service, crowd == "for ever"
        self.waiting: deque[ExitStack] = deque()
        self.running = 0
        self.came_back, self.found_a_place = 0, 0
        self.names = itertools.count()
        self.calendar: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        if crowd == "more and more":
            times = itertools.accumulate(
                self.rng.expovariate(1.3 * slots / service(self.rng)) for _ in range(1000)
            )
        else:
            times = itertools.accumulate([0.001] * 2 * (slots + waiting))
        for time in times:
            self.at(time, self.ask, next(self.names))

    def at(self, time: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self.calendar, (time, next(self.names), what, arguments))

    def ask(self, name: int, back: bool = False) -> None:
        place = ExitStack()
        self.came_back += back
        try:
            place.enter_context(self.admission.enter(name))
        except APIError as refusal:
            wait_s = refusal.retry_after_s
            assert wait_s is not None
            # Beyond the longest wait nothing is promised.
            again = self.clock.now + wait_s + self.rng.random() * LAG_S
            self.at(again, self.ask, name, wait_s < LONGEST_WAIT_S)
            return
        self.found_a_place += back
        self.waiting.append(place)
        self.begin()

    def begin(self) -> None:
        while self.waiting and self.running < self.slots:
            self.running += 1
            self.at(self.clock.now + self.service(self.rng), self.end, self.waiting.popleft())

    def end(self, place: ExitStack) -> None:
        self.running -= 1
        place.close()
        if self.for_ever:
            self.at(self.clock.now + LAG_S, self.ask, next(self.names))
        self.begin()

    def run(self) -> None:
        with suppress(IndexError):
            while self.clock.now < END_S:
                self.clock.now, _, what, arguments = heapq.heappop(self.calendar)
                what(*arguments)


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize(("slots", "waiting"), [(8, 64), (8, 8)])
def test_nine_in_ten_who_come_back_find_a_place(
    slots: int, waiting: int, service: str, crowd: str
) -> None:
    queue = Queue(slots, waiting, SERVICES[service], crowd)
    queue.run()
    if crowd != "more and more":
        assert queue.came_back >= 10
    assert queue.found_a_place >= 0.9 * queue.came_back
