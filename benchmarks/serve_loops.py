"""The two kinds of load, and the search for the highest rate that holds.

Owns when requests are sent. In the closed loop a fixed number of listeners ask again as soon as
their audio has come, and after a failure when Retry-After has passed. In the open loop requests
come as a Poisson process, whether or not the server follows. Knows nothing about HTTP or audio.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

import numpy as np
from serve_client import Outcome

NEAR = 1.1
"""A search ends when the rate that fails is so little above the one that holds."""
MOST_HALVINGS = 6
MOST_DOUBLINGS = 12

Ask = Callable[[], Awaitable[Outcome]]


async def closed_loop(ask_one: Ask, listeners: int, requests: int, seconds: float) -> list[Outcome]:
    """At least `requests`, for at least `seconds`, by so many listeners at a time."""
    outcomes: list[Outcome] = []
    started = time.monotonic()
    sent = 0

    async def listen() -> None:
        nonlocal sent
        while sent < requests or time.monotonic() < started + seconds:
            sent += 1
            outcome = await ask_one()
            outcomes.append(outcome)
            if not outcome.ok:
                await asyncio.sleep(outcome.retry_s)

    await asyncio.gather(*(listen() for _ in range(listeners)))
    return outcomes


async def open_loop(
    ask_one: Ask, rate: float, requests: int, seconds: float, generator: np.random.Generator
) -> list[Outcome]:
    """At least `requests`, for at least `seconds`, `rate` of them per second on average."""
    started = time.monotonic()
    due = 0.0
    asked: list[asyncio.Future[Outcome]] = []
    while len(asked) < requests or due < seconds:
        await asyncio.sleep(started + due - time.monotonic())
        asked.append(asyncio.ensure_future(ask_one()))
        due += generator.exponential(1 / rate)
    return await asyncio.gather(*asked)


async def highest_rate(holds: Callable[[float], Awaitable[bool]], start: float) -> float | None:
    """Doubled from `start` until it does not hold, then bisected; None if nothing holds."""
    low, high = 0.0, start
    for _ in range(MOST_DOUBLINGS):
        if not await holds(high):
            break
        low, high = high, 2 * high
    else:
        return low
    for _ in range(MOST_HALVINGS):
        if low:
            break
        if await holds(high / 2):
            low = high / 2
        else:
            high /= 2
    while low and high / low > NEAR:
        middle = math.sqrt(low * high)
        if await holds(middle):
            low = middle
        else:
            high = middle
    return low or None
