"""Joining the Ray cluster, and where a job's output may lie.

Owns what every job's driver does first: connect with the environment its workers need, and refuse
an output path that would vanish.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray._private import ray_constants

from sheen import loopback
from sheen.core import files
from sheen.heads import check_head

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
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
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
    if submitted and not files.is_uri(location) and not Path(location).expanduser().is_absolute():
        raise ValueError(
            f"{flag} {location}: a submitted job runs in a temporary copy of the working "
            "directory, and a relative output would be lost with it. Give an absolute path "
            f'("$PWD/{location}" when the head is this machine) or a URI such as s3://bucket/...'
        )
    return files.absolute(location)
