"""`python -m sheen.serve.drain`: finish speech, refuse new requests, then shut Serve down.

Owns an orderly shutdown: which cluster runs the application, how long its replicas may take, and
the end of the `serve run` process, which would otherwise wait with nothing to serve. `serve
shutdown`, and Ctrl-C or SIGTERM under `serve run`, end Ray's HTTP proxies at once and with them
every stream (seen with Ray 2.60); a replica that is replaced finishes its requests without any of
this.
"""

import argparse
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray import serve
from ray._private.services import find_gcs_addresses
from ray._private.state import jobs
from ray.exceptions import RayError, RayTaskError
from ray.util import get_node_ip_address

from sheen.runs import cluster

POLL_S = 0.5
REPORT_S = 5.0
ANSWER_S = 10.0
CONNECT_S = 5.0
END_S = 30.0
"""Seconds for a `serve run` process to end after a signal, before the next one is sent."""


def drain(application: str, timeout_s: float, playback_s: float) -> int:
    """Drain every replica: wait until no request is left, for `timeout_s` at most, then until
    clients have played the audio sent, for `playback_s` at most. Returns the requests left, -1 if
    no replica ever answered.

    ValueError for an application of another kind.
    """
    handle = serve.get_app_handle(application)
    began = reported = time.monotonic()
    inside, quiet_since = -1, None
    while (now := time.monotonic()) < began + timeout_s:
        unplayed_s = 0.0
        try:
            answers = handle.broadcast("drain").results(timeout_s=ANSWER_S)
        except RayTaskError as error:
            raise ValueError(
                f"the application {application!r} cannot be drained: {error}"
            ) from None
        except (RayError, TimeoutError) as error:  # a replica that has ended, or is slow
            print(f"a replica does not answer: {error}", file=sys.stderr)
        else:
            inside = sum(requests for requests, _ in answers)
            unplayed_s = max((seconds for _, seconds in answers), default=0.0)
            if not inside:
                quiet_since = quiet_since or now
                if not unplayed_s or now >= quiet_since + playback_s:
                    return 0
        if now >= reported + REPORT_S:
            reported = now
            print(f"{inside} requests, {unplayed_s:.0f} s of audio to be played", file=sys.stderr)
        time.sleep(POLL_S)
    return inside


def join(application: str, address: str | None) -> None:
    """Connect to the cluster at `address`, or to the one on this machine that has the application.

    ValueError names the clusters without it, or those to choose from.
    """
    addresses = [address] if address else sorted(find_gcs_addresses())
    having, others = [], []
    for candidate in addresses:
        try:
            found = _applications(candidate)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            others.append(f"{candidate} cannot be joined ({' '.join(str(error).split())})")
        else:
            if application in found:
                having.append(candidate)
            else:
                names = ", ".join(map(repr, found)) or "none"
                others.append(f"{candidate} has no application {application!r} (it has: {names})")
        ray.shutdown()
    if len(having) > 1:
        raise ValueError(
            f"several Ray clusters here have an application {application!r}: {', '.join(having)}; "
            "choose one with --address"
        )
    if not having:
        raise ValueError(
            "; ".join(f"the Ray cluster at {other}" for other in others)
            or "no Ray cluster runs on this machine; name another with --address or RAY_ADDRESS"
        )
    _applications(having[0])


def _applications(address: str) -> list[str]:
    """Join a cluster. Returns the names of its applications."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ValueError("expected HOST:PORT")
    with socket.create_connection((host, int(port)), CONNECT_S):
        pass  # where nothing listens Ray would try for a minute
    with cluster.on_loopback():
        ray.init(address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
    return sorted(serve.status().applications)


def serve_runs() -> list[int]:
    """Ids of the processes on this machine that run `serve run`, or `sheen serve`, on the
    cluster."""
    here = get_node_ip_address()
    return [
        job["DriverPid"]
        for job in jobs()
        if not job["IsDead"] and job["DriverIPAddress"] == here and runs_serve(job["Entrypoint"])
    ]


def runs_serve(command_line: str) -> bool:
    """Whether a command line is `serve run`, `sheen serve` or `python -m sheen.serve.run`."""
    forms = r"\bserve run\b", r"\bsheen serve\b", r"\bsheen\.serve\.run\b"
    return re.search("|".join(forms), command_line) is not None


def end(processes: Sequence[int]) -> list[int]:
    """Signal processes until they end. Returns those that do not. SIGINT first: `serve run` exits
    with 0 on it, but a shell's background job ignores it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in processes:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process, number)
        deadline = time.monotonic() + END_S
        while (processes := [p for p in processes if _lives(p)]) and time.monotonic() < deadline:
            time.sleep(POLL_S)
    return list(processes)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2]
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):  # another user's; a system without /proc
        return True
    return state.split()[0] != "Z"  # a zombie has ended


def report_cut(left: int) -> None:
    """Report requests that were cut off because a drain timed out."""
    if left:
        cut = f"{left} requests were" if left > 0 else "no replica answered; speech may have been"
        print(f"{cut} cut", file=sys.stderr)


def add_waits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout-s",
        type=float,
        default=300.0,
        help="longest wait for requests that run, seconds (default: 300)",
    )
    parser.add_argument(
        "--playback-s",
        type=float,
        default=30.0,
        help="longest wait for clients to play audio sent ahead of playback, seconds (default: 30)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sheen.serve.drain",
        description="Finish speech, answer new requests with 503, then shut Serve down, and the "
        "`serve run` process on this machine that waits on it.",
    )
    parser.add_argument("--app", default="sheen", help="application (default: sheen)")
    parser.add_argument(
        "--address",
        help="HOST:PORT of the Ray cluster (default: RAY_ADDRESS, else the cluster of this machine "
        "that has the application)",
    )
    add_waits(parser)
    parser.add_argument(
        "--keep", action="store_true", help="leave Serve running; the application stays drained"
    )
    options = parser.parse_args(arguments)
    address = options.address or os.environ.get("RAY_ADDRESS", "")
    try:
        join(options.app, None if address == "auto" else address)
        left = drain(options.app, options.timeout_s, options.playback_s)
    except ValueError as error:
        print(f"drain: error: {error}", file=sys.stderr)
        return 2
    report_cut(left)
    if options.keep:
        return 1 if left else 0
    serve.shutdown()
    waiting = serve_runs()
    ray.shutdown()  # before the cluster, which may be a `serve run` process's own, ends
    stuck = end(waiting)
    if stuck:
        print(f"still running: serve run, process {', '.join(map(str, stuck))}", file=sys.stderr)
    return 1 if left or stuck else 0


if __name__ == "__main__":
    sys.exit(main())
