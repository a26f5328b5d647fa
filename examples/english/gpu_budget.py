"""How long a run of train_on_gpu.py lasts, by steps or by the clock.

Owns the number of steps that the learning rate's schedule is given: by the clock, as many more as
there is time for at the pace so far, so that the schedule ends when the time does.
"""

import time


class Budget:
    """How long a run lasts: a number of steps, or seconds of wall time over all its parts.

    state: what `state` returned in the part before.
    """

    def __init__(
        self, steps: int | None, seconds: float | None, state: dict[str, float] | None = None
    ) -> None:
        assert (steps is None) != (seconds is None)
        self._steps, self._seconds = steps, seconds
        before = state or {"spent": 0.0, "stepping": 0.0}
        self._start = time.monotonic() - before["spent"]
        self._stepping = before["stepping"]
        self._first_step: float | None = None

    def count_step(self) -> None:
        """After each step. A part's first one compiles, and says nothing of those to come."""
        if self._first_step is None:
            self._first_step = time.monotonic()

    def spent(self) -> float:
        return time.monotonic() - self._start

    def stepping(self) -> float:
        """Seconds since a part's first step, over all parts."""
        since = 0.0 if self._first_step is None else time.monotonic() - self._first_step
        return self._stepping + since

    def total(self, step: int) -> int:
        """Steps of the whole run; by the clock, as many more as there is time for."""
        if self._steps is not None:
            return self._steps
        assert self._seconds is not None
        left = max(0.0, self._seconds - self.spent())
        stepping = self.stepping()
        return step + (round(left * step / stepping) if stepping else 1)

    def is_over(self, step: int) -> bool:
        if self._steps is not None:
            return step >= self._steps
        assert self._seconds is not None
        return self.spent() >= self._seconds

    def state(self) -> dict[str, float]:
        return {"spent": self.spent(), "stepping": self.stepping()}
