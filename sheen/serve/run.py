"""`python -m sheen.serve.run CONFIG`: `serve run CONFIG`, and an end that lets speech finish.

Owns what SIGTERM and SIGINT mean. Docker, Kubernetes and systemd end a server with the first, a
terminal with the second, and `serve run` cuts every stream on either (seen with Ray 2.60). Here
requests are drained as by `sheen.serve.drain`, Serve is shut down, and the process exits with 0 and
with it the Ray cluster that it started, which is on 127.0.0.1. A second signal ends it at once.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import ray
import yaml
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.scripts import cli

from sheen.runs import cluster
from sheen.serve.drain import add_waits, drain, tell

BUILDER = "sheen.serve.app:"
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop(BaseException):
    """A signal came. Not an Exception: `serve run` catches those, and shuts down at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sheen.serve.run",
        description="`serve run` of a config; SIGTERM and SIGINT let speech finish first.",
    )
    parser.add_argument("config", type=Path, help="such as serve_config.yaml")
    parser.add_argument("--address", help="HOST:PORT of a Ray cluster (default: as `serve run`)")
    add_waits(parser)
    options = parser.parse_args(arguments)
    try:
        config = yaml.safe_load(options.config.read_text("utf-8"))
        applications = [
            application["name"]
            for application in config["applications"]
            if application["import_path"].startswith(BUILDER)
        ]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        parser.error(f"{options.config}: not a config of Ray Serve ({error!r})")
    # Before `serve run` would: Ray's start sets a handler for SIGTERM, which ours replace.
    with cluster.on_loopback():
        ray.init(options.address, namespace="serve")
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        cli.main(["run", str(options.config)], standalone_mode=False)
    except Stop:
        for number in SIGNALS:
            signal.signal(number, _exit)
    except SystemExit:  # after an error that it has shown; its status is 0
        return 1
    else:
        return 1
    cut = False
    for application in applications:
        try:
            left = drain(application, options.timeout_s, options.hear_s)
            tell(left)
            cut |= left != 0
        except (RayServeException, RayError) as error:  # not begun, or drained from outside
            print(f"{application}: nothing to drain ({error})", file=sys.stderr)
    serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
    return 1 if cut else 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stop


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
