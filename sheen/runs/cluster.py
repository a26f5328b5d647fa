"""Joining the Ray cluster, as every job's driver does first.

Owns the environment that workers need, the check that the head named by RAY_ADDRESS or a file
answers (Ray itself waits for a dead head without end and does not say where its address came
from), the device that `--gpu` selects, and the refusal of an output path that would be lost.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._common.utils import get_ray_address_file
from ray._private import ray_constants

from sheen.runs import loopback
from sheen.storage import uris

WORKER_ENV = {
    # glibc returns each large tensor to the kernel and page-faults it back: with these the codec
    # runs about three times faster on a CPU.
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
}


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names or that runs on this machine, else start one here.

    One that is started here listens on 127.0.0.1 and asks for a token: the user's, where there is
    one, else one of its own. RAY_AUTH_MODE stays as the user has it; unset, a new cluster has Ray's
    default, which is the token. ValueError where the head that is named does not answer.
    """
    if ray.is_initialized():
        return
    if not check_head() and not loopback.has_token():
        # Ray would write a token to the home folder, where it would change what a later
        # `ray start` does.
        token = loopback.write_token(loopback.folder_until_exit())
        os.environ[loopback.TOKEN_PATH] = str(token)
    with on_loopback():
        ray.init(runtime_env={"env_vars": WORKER_ENV}, log_to_driver=True)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Around `ray.init`: what loopback.SWITCH does, which Ray reads when it is imported.

    A new cluster gets 127.0.0.1; a head's 127.0.0.1 is not replaced by the machine's own address,
    where a head on loopback does not listen. A head with any other address is joined as ever.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def count(resource: str, default: int = 1) -> int:
    """How many of a resource the cluster has now, at least `default`."""
    resources: dict[str, float] = ray.cluster_resources()
    return max(default, int(resources.get(resource, 0)))


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
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and not uris.is_uri(location) and not Path(location).expanduser().is_absolute():
        raise ValueError(
            f"{flag} {location}: a submitted job runs in a temporary copy of the working "
            "directory, and a relative output would be lost with it. Give an absolute path "
            f'("$PWD/{location}" when the head is this machine) or a URI such as s3://bucket/...'
        )
    return uris.absolute(location)


ANSWER_S = 5.0


def check_head() -> bool:
    """Whether a job would join a head, and not start a cluster.

    ValueError names the variable or the file that has the address of no living head.
    """
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
