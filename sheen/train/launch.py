"""Running a training loop on Ray Train: start, stop on a signal, and say what went wrong.

Owns TorchTrainer's set-up and the driver's wait. Ctrl-C and SIGTERM make the workers save and end;
a second one, or one while no worker runs, ends at once, and the last checkpoint stays. What a
worker raised comes back as one exception with its own message.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from sheen import cluster
from sheen.exits import Stopped
from sheen.train import rendezvous
from sheen.train.control import Control

FAILED_WAIT_S = 30.0
"""How long workers may take to end after one of them said that no restart will mend it."""
ASK_EVERY_S = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def fit(
    train_loop: Callable[[dict[str, Any]], Any],
    arguments: dict[str, Any],
    *,
    output: str,
    run_name: str,
    num_workers: int,
    gpu: bool | None,
    cpus_per_worker: float,
    max_failures: int,
) -> Result:
    """Run `train_loop({**arguments, "control": ...})` on the workers; the result of a whole run.

    Raises Stopped after a signal, ValueError for what a worker said no restart will mend, and
    TrainingFailedError when restarts are used up.
    """
    control = Control()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={**arguments, "control": control},
        torch_config=rendezvous.Config(),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=cluster.use_gpus(gpu),
            resources_per_worker={"CPU": cpus_per_worker},
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=output,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    received: list[int] = []
    with _on_signals(received):
        result = _wait(trainer, control, received)
    if failure := control.failure():
        raise ValueError(failure)
    if received:
        raise Stopped(
            received[0],
            f"stopped by {signal.Signals(received[0]).name} and saved; the same command resumes",
        )
    return result


def _wait(trainer: TorchTrainer, control: Control, received: list[int]) -> Result:
    # In a thread: in the main one Ray Train takes over Ctrl-C and aborts the run unsaved.
    outcome: list[Result | BaseException] = []

    def run() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            outcome.append(error)

    thread = threading.Thread(target=run, name="sheen-fit", daemon=True)
    thread.start()
    told = False
    asked = time.monotonic()
    failed_since: float | None = None
    while thread.is_alive():
        thread.join(timeout=0.2)
        if received and not told:
            told = True
            if not control.stop():
                raise Stopped(
                    received[0],
                    f"stopped by {signal.Signals(received[0]).name} while no worker was running; "
                    "the same command starts or resumes",
                )
            print("stopping: workers end their step and save; again to end at once", flush=True)
        # A worker that cannot start says so and returns; others may wait for it without end.
        if time.monotonic() - asked > ASK_EVERY_S:
            asked = time.monotonic()
            failed_since = (failed_since or asked) if control.failure() else None
        if failed_since is not None and asked - failed_since > FAILED_WAIT_S:
            raise ValueError(control.failure())
        if len(received) > 1:
            raise Stopped(received[0], "ended at once; the same command resumes from the last save")
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


@contextmanager
def _on_signals(received: list[int]) -> Iterator[None]:
    """Collect signals instead of ending, where this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda found, _: received.append(found)) for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
