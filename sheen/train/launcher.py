"""Runs a training loop on Ray Train: command line, start, stop on a signal, error report.

Owns the TorchTrainer's configuration, the driver's wait, and both sides of the board through which
driver and workers exchange two messages: stop (save and end) and failed (a restart will not help).
SIGINT and SIGTERM make the workers save and end; a second signal, or one while no worker is
running, ends the job at once, with the last checkpoint kept. An exception in a worker is reported
as one error with its message. Does not restart after errors that would recur (`FINAL`).
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import (
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.torch import TorchTrainer
from safetensors import SafetensorError

from sheen.config import fail, load_config
from sheen.runs import cluster
from sheen.runs.cluster import Board, Stopped, run_job
from sheen.storage import uris
from sheen.train import distributed
from sheen.train.checkpoints import RUN, RunStore
from sheen.train.config import RunFields

logger = logging.getLogger(__name__)

Loop = TypeVar("Loop")

FINAL = (
    ValueError, TypeError, AttributeError, LookupError, ImportError, NotImplementedError,
    SafetensorError,
)  # fmt: skip
"""Errors before a worker's first step that would recur after every restart."""


class Control:
    """A handle to the board, created by the driver and passed to the workers."""

    def __init__(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        options = {"label_selector": {"ray.io/node-id": node}}
        self._board: Any = ray.remote(Board).options(num_cpus=0, **options).remote()

    def watched(self) -> "Watch":
        """A worker's side, whose `stop_requested` does not wait."""
        return Watch(self._board)

    def stop(self) -> bool:
        """Ask the workers to save and end after their step. Returns whether any is alive."""
        workers = ray.get(self._board.stop.remote())
        return any(_is_alive(cloudpickle.loads(worker)) for worker in workers)

    def failure(self) -> str | None:
        """A worker's error that would recur after a restart, if there is one."""
        failure: str | None = ray.get(self._board.failure.remote())
        return failure

    def start(self, make: Callable[..., Loop], arguments: dict[str, Any]) -> Loop | None:
        """`make(**arguments)` in a worker; None after an error that would recur, which is reported
        to the driver."""
        try:
            return make(**arguments)
        except FINAL as error:
            logger.exception("this worker cannot start")
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            ray.get(self._board.fail.remote(f"{kind}{error}"))
            return None


def _is_alive(worker: Any) -> bool:
    try:
        ray.get(worker.__ray_ready__.remote(), timeout=5.0)
    except RayActorError:
        return False
    except GetTimeoutError:
        return True
    return True


class Watch:
    """A worker's side of `Control`."""

    def __init__(self, board: Any) -> None:
        self._board = board
        # Pickled, so that the board does not import all of Ray Train for the handle.
        this = cloudpickle.dumps(ray.get_runtime_context().current_actor)
        self._stop: Any = board.wait_for_stop.remote(this)

    def stop_requested(self) -> bool:
        return bool(ray.wait([self._stop], timeout=0)[0])

    def fail(self, message: str) -> None:
        """Report an error that ends the run; the worker then returns."""
        ray.get(self._board.fail.remote(message))


FAILED_WAIT_S = 30.0
"""Seconds that workers have to end after one reported an error that would recur."""
ASK_EVERY_S = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def fit(
    train_loop: Callable[[dict[str, Any]], Any],
    arguments: dict[str, Any],
    config: RunFields,
    output: str,
) -> Result:
    """Run `train_loop({**arguments, "control": ...})` on the workers to the end.

    Raises Stopped after a signal, ValueError for an error that would recur, and TrainingFailedError
    when all restarts are used.
    """
    control = Control()
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={**arguments, "control": control},
        torch_config=distributed.Config(),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers or 1,
            use_gpu=cluster.use_gpus(config.gpu),
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name=RUN,
            storage_path=output,
            failure_config=FailureConfig(max_failures=config.max_failures),
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
    # In a thread: in the main thread, Ray Train handles Ctrl-C and aborts without saving.
    finished: list[Result | BaseException] = []

    def run() -> None:
        try:
            finished.append(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            finished.append(error)

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
            print(
                "stopping: workers finish their step and save; a second signal stops at once",
                flush=True,
            )
        # A worker that cannot start reports it and returns; others may wait for it forever.
        if time.monotonic() - asked > ASK_EVERY_S:
            asked = time.monotonic()
            failed_since = (failed_since or asked) if control.failure() else None
        if failed_since is not None and asked - failed_since > FAILED_WAIT_S:
            raise ValueError(control.failure())
        if len(received) > 1:
            raise Stopped(
                received[0], "stopped at once; the same command resumes from the last checkpoint"
            )
    result = finished[0]
    if isinstance(result, BaseException):
        raise result
    return result


@contextmanager
def _on_signals(received: list[int]) -> Iterator[None]:
    """Collect signals instead of ending, if this is the main thread."""
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


Config = TypeVar("Config", bound=RunFields)


def main(
    prog: str,
    argv: list[str],
    config_class: type[Config],
    run: Callable[[Config], dict[str, Any]],
    summary: Callable[[Config, dict[str, Any]], str],
) -> int:
    """As `run_job`; exit status 1 if workers failed more often than allowed."""

    def job() -> int:
        config = load_config(config_class, argv, prog)
        try:
            print(summary(config, run(config)))
        except TrainingFailedError as error:
            fail(prog, RuntimeError(f"{_cause(error)}\n{_left(config)}"))
            return 1
        return 0

    return run_job(prog, job)


def _cause(error: TrainingFailedError) -> str:
    """The error of one worker, instead of Ray Train's report on the whole group."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = next(iter(error.worker_failures.items()))
        return f"worker {rank} failed: {failure}"
    return str(error)


def _left(config: RunFields) -> str:
    """Where a failed run resumes from."""
    last = RunStore(uris.absolute(config.output), config.keep_checkpoints).latest()
    if last is None:
        return "There is no checkpoint yet: the same command starts again"
    return f"The last checkpoint is {last}: the same command resumes from it"
