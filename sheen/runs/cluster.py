"""A job's driver on a Ray cluster: how it joins one, and how it ends.

Owns the environment that workers need, the check that the head named by RAY_ADDRESS or a file
answers (Ray itself waits for a dead head without end and does not say where its address came
from), the settings of a Ray that only this user, on this machine, can use, the device that `--gpu`
selects, the refusal of an output path that would be lost, and the exit status. Errors that the user
can fix (bad input, a full or read-only disk, Ctrl-C) are one line; every other exception is a bug
and keeps its traceback.

Ray is imported where it is used: it reads `loopback_settings` when it is imported.
"""

import asyncio
import atexit
import ctypes
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sheen.config import errors_of, fail
from sheen.storage import files, uris

WORKER_ENV = {
    # glibc returns each large tensor to the kernel and page-faults it back: with these the codec
    # runs about three times faster on a CPU.
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}
SMALL_BLOCKS = "MALLOC_MMAP_THRESHOLD_", "131072"
"""For processes that compute nothing. It is glibc's initial value; unset, each larger block that is
freed raises it, and such blocks are kept."""
NORMAL_PRIORITY = "RAY_worker_niceness", "0"
"""For a cluster that serves listeners; with Ray's 15 any other program has priority over it."""
WORKER_CPUS = 0.25
"""Reserved by a worker of a batch job, which uses one. When nodes die, Ray moves their workers to
the others, and the tasks that feed them must find room there: with 0.5 they filled what was left
after the loss of half, and the job waited for ever."""
TASK_CPUS = 0.2
"""Reserved by a task beside such workers. Another number than theirs: Ray Data would make one stage
of the two, and a worker, or its GPU, would wait for what its own process reads."""
_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray reads it on Linux too. "0": no node but this one, and every port is on 127.0.0.1."""
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
ANSWER_S = 5.0
"""Seconds to wait for a head; a live one answers sooner."""


def trim_memory() -> None:
    """Return freed memory to the system, which glibc keeps under WORKER_ENV."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def connect(**options: Any) -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine, else start one here.

    One that is started here, with these options of `ray.init`, listens on 127.0.0.1 and asks for a
    token: the user's, where there is one, else one of its own. RAY_AUTH_MODE stays as the user has
    it; unset, a new cluster has Ray's default, which is the token. ValueError where the head that
    is named does not answer, or refuses.
    """
    import ray

    if ray.is_initialized():
        return
    joins = check_head()
    if not joins and not _has_token():
        # Ray would write a token to the home folder, where it would change what a later
        # `ray start` does.
        token = write_token(token_folder())
        os.environ[_TOKEN_PATH] = str(token)
    if not joins:
        # A new cluster's workers inherit it. From a runtime environment, as a head's need it, each
        # would first start Python and import Ray once more, to read it: a third of a light start.
        os.environ.update(WORKER_ENV)
    with on_loopback():
        try:
            ray.init(**{"runtime_env": {"env_vars": WORKER_ENV}} if joins else options)
        except ConnectionError as error:
            if not joins:
                raise
            raise ValueError(
                f"{error}: a head listens there and does not take this job. If it is yours, give "
                "the job its token (RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN); with RAY_ADDRESS=local "
                "the job starts a cluster of its own"
            ) from error
    if threading.current_thread() is threading.main_thread():
        # Ray's Python handler again, over the one that its C++ code has put before it: that is for
        # crashes, and aborts the process three seconds later, in the middle of an orderly end.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def on_loopback() -> Iterator[None]:
    """Around `ray.init`: what _SWITCH does, which Ray reads when it is imported.

    A new cluster gets 127.0.0.1; a head's 127.0.0.1 is not replaced by the machine's own address,
    where a head on loopback does not listen. A head with any other address is joined as ever.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def count(resource: str, default: int = 1) -> int:
    """How many of a resource the cluster has now, at least `default`."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()
    return max(default, int(resources.get(resource, 0)))


def node_resources() -> list[dict[str, float]]:
    """The total resources of each node that is in the cluster now."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def use_gpus(flag: bool | None) -> bool:
    """What `--gpu` means: as given, else whether the cluster has a GPU now.

    A cluster whose GPU nodes start on demand shows none while it is idle: there the flag must be
    given, and waiting for a node is what the user wants.
    """
    if flag is not None:
        return flag
    found = count("GPU", default=0) > 0
    print(f"computing on {'GPUs' if found else 'CPUs'} (--gpu or --no-gpu decides)", flush=True)
    return found


def output_folder(flag: str, location: str) -> str:
    """An output location made absolute. ValueError for one that would be lost.

    A submitted job runs in a copy of the working directory under Ray's temporary folder; a
    relative output would be written there and deleted with it.
    """
    with errors_of(flag):
        place = uris.absolute(location)
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and not uris.is_uri(location) and not Path(location).expanduser().is_absolute():
        raise ValueError(
            f"{flag} {location}: a submitted job runs in a temporary copy of the working "
            "directory, and a relative output would be lost with it. Give an absolute path "
            f'("$PWD/{location}" when the head is this machine) or a URI such as s3://bucket/...'
        )
    return place


def check_head() -> bool:
    """Whether a job would join a head, and not start a cluster.

    ValueError names the variable or the file that has the address of no living head.
    """
    from ray._common.utils import get_ray_address_file

    source, address = "the variable RAY_ADDRESS", os.environ.get("RAY_ADDRESS", "")
    remedy = "unset it to start a cluster here, or give the address of a head that runs"
    if not address:
        file = Path(get_ray_address_file(None))
        if not file.exists():
            return False
        source, address = f"the file {file}", file.read_text("utf-8").strip()
        remedy = "a `ray start` that was not ended by `ray stop` has left it: delete it"
    if address in ("", "auto", "local"):
        return address == "auto"
    host, _, port = (address.partition("://")[2] or address).rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{source} holds {address!r}, expected host:port; {remedy}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"{source} says that a Ray head is at {address}, where none answers ({error}); {remedy}"
        ) from error
    return True


def token_folder() -> Path:
    """A new folder that only this user may open; it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="sheen-token-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def loopback_settings(folder: Path) -> dict[str, str]:
    """The environment of a Ray that listens on loopback and asks for a new token, kept in `folder`.

    `--node-ip-address=127.0.0.1` does not keep Ray on loopback: it replaces that address with the
    machine's own (docs/upstream.md). Other users of the machine reach loopback too: the token is
    what keeps them out.
    """
    return {_SWITCH: "0", "RAY_AUTH_MODE": "token", _TOKEN_PATH: str(write_token(folder))}


def write_token(folder: Path) -> Path:
    """A new token, in a file that its owner alone may read."""
    path = folder / "ray-token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))
    return path


def _has_token() -> bool:
    """Whether this user has chosen a token, in one of the three places where Ray looks."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get(_TOKEN_PATH)
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


class Board:
    """The actor between a driver and its workers: it keeps a stop and a failure.

    Asynchronous, so that one call can wait while others are served. It stands here, without torch:
    its process would otherwise take seconds to start, in every run.
    """

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._failure: str | None = None
        self._workers: list[bytes] = []

    async def stop(self) -> list[bytes]:
        """The handles of the workers that wait, pickled."""
        self._stop.set()
        return self._workers

    async def wait_for_stop(self, worker: bytes) -> None:
        self._workers.append(worker)
        await self._stop.wait()

    async def fail(self, message: str) -> None:
        self._failure = self._failure or message

    async def failure(self) -> str | None:
        return self._failure


class Stopped(Exception):
    """A job ended early because it was asked to, and can be resumed."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.status = 128 + signum
        """Exit status, as shells have it for a process that ended by a signal."""


def run_job(prog: str, job: Callable[[], int]) -> int:
    """What `job` returns; 2: the user must change something; 128 + signal: stopped, resumable.

    Also sets the log up as every job has it.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return job()
    except (ValueError, OSError) as error:
        from ray.exceptions import RayTaskError

        if isinstance(error, RayTaskError):  # it is what the task raised too
            raise
        if isinstance(error, OSError) and error.errno in files.DISK_FULL:
            return fail(prog, OSError(f"{error}. Free space, then the same command resumes"))
        return fail(prog, error)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; the same command resumes", flush=True)
        return 128 + signal.SIGINT
    except SystemExit as ended:
        if ended.code != signal.SIGTERM:
            raise
        # Ray's own handler, in a job that sets none.
        print(f"{prog}: stopped by SIGTERM; the same command resumes", flush=True)
        return 128 + signal.SIGTERM
    except Stopped as stopped:
        print(f"{prog}: {stopped}", flush=True)
        return stopped.status
