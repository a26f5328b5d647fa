"""`sheen serve`: `serve run` of a config or of one checkpoint, and a shutdown that finishes speech.

Owns the config that is generated for `--model` and shown by `--print-config`, and the handling of
SIGTERM and SIGINT. Docker, Kubernetes and systemd end a server with the first, a terminal with the
second, and `serve run` cuts every stream on either (seen with Ray 2.60). Here requests are drained
as by `sheen.serve.drain`, Serve is shut down, and the process exits with 0 and with it the Ray
cluster that it started, which is on 127.0.0.1. A second signal ends it at once.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import yaml
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.scripts import cli

from sheen.lm.default_voice import find_default_voice
from sheen.runs import cluster
from sheen.serve.access.keys import KEYS_VARIABLE
from sheen.serve.config import checkpoint_location
from sheen.serve.drain import add_waits, drain, report_cut
from sheen.storage import hub, uris

BUILDER = "sheen.serve.app:"
HOST, PORT = "127.0.0.1", 8000
OF_MODEL = ("form", "codec", "info", "host", "port", "auth", "gpu")
"""Flags that describe the config for --model."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop(BaseException):
    """Raised on a signal. Not an Exception: `serve run` catches those, and shuts down at once."""


def main(arguments: Sequence[str] | None = None, prog: str = "python -m sheen.serve.run") -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="`serve run` of a config, or of one for --model; SIGTERM and SIGINT let speech "
        "finish first.",
    )
    parser.add_argument("config", type=Path, nargs="?", help="such as serve_config.yaml")
    parser.add_argument("--model", help="instead of a config: checkpoint, folder, URI or hub id")
    foreign = "with --model, of a checkpoint without sheen.json:"
    parser.add_argument("--form", help=f"{foreign} its prompt form, see docs/orpheus.md")
    parser.add_argument(
        "--codec",
        help=f"{foreign} its SNAC, folder or hub id; of others, one that differs from theirs in "
        "the decoder alone",
    )
    parser.add_argument("--info", help=f"{foreign} a file of `sheen inspect`, path or URI")
    parser.add_argument("--host", help=f"with --model (default: {HOST})")
    parser.add_argument("--port", type=int, help=f"with --model (default: {PORT})")
    parser.add_argument(
        "--auth",
        choices=("keys", "none"),
        help=f"with --model: keys from the environment variable {KEYS_VARIABLE} (default: none for "
        "a host of 127.*, else keys)",
    )
    parser.add_argument("--gpu", action="store_true", help="with --model: a GPU for each replica")
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the config for --model (default: the English voice) and exit",
    )
    parser.add_argument("--address", help="HOST:PORT of a Ray cluster (default: as `serve run`)")
    add_waits(parser)
    options = parser.parse_args(arguments)
    if options.print_config and options.model is None:
        options.model = find_default_voice()
    if (options.config is None) == (options.model is None):
        parser.error("give either a config or --model")
    if options.config is not None:
        values = {f"--{name}": getattr(options, name) for name in OF_MODEL}
        given = [flag for flag, value in values.items() if value is not None and value is not False]
        if given:
            parser.error(f"{', '.join(given)}: only with --model; set this in {options.config}")
        return _run(options.config, options, parser)
    try:
        # The config may be used from another folder.
        for name in ("model", "codec", "info"):
            value = getattr(options, name)
            if value is not None and (name == "info" or not hub.is_hub_id(value)):
                setattr(options, name, uris.absolute(value))
        model = checkpoint_location(options.model)
    except ValueError as error:
        parser.error(str(error))
    host = HOST if options.host is None else options.host
    port = PORT if options.port is None else options.port
    auth = options.auth or ("none" if host.startswith("127.") else "keys")
    config = yaml.safe_dump(
        serve_config(
            model,
            host,
            port,
            auth,
            options.gpu,
            {name: getattr(options, name) for name in ("form", "codec", "info")},
        ),
        sort_keys=False,
    )
    if options.print_config:
        print(f"# serve run FILE, or sheen serve FILE\n{config}", end="")
        return 0
    with tempfile.TemporaryDirectory(prefix="sheen-") as folder:
        path = Path(folder) / "serve_config.yaml"
        path.write_text(config, "utf-8")
        return _run(path, options, parser)


def serve_config(
    model: str,
    host: str,
    port: int,
    auth: str,
    gpu: bool = False,
    source: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """A config of Ray Serve for one checkpoint, like a checkout's serve_config.yaml. `source`:
    further `args` that describe the checkpoint (`form`, `codec`, `info`)."""
    actor = {"num_cpus": 1} | ({"num_gpus": 1} if gpu else {})
    scaling = {
        "min_replicas": 1,
        "max_replicas": 1 if gpu else 2,
        "target_ongoing_requests": 6,
        "upscale_delay_s": 10,
        "downscale_delay_s": 300,
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": host, "port": port},
        "logging_config": {"encoding": "JSON"},
        "applications": [
            {
                "name": "sheen",
                "route_prefix": "/",
                "import_path": f"{BUILDER}build",
                "runtime_env": {"env_vars": dict(cluster.WORKER_ENV)},
                "args": {
                    "model": model,
                    **{name: value for name, value in (source or {}).items() if value is not None},
                    "slots": 8,
                    "max_queue": 64,
                    "trim_silence": True,
                    "torch_threads": 1,
                    "auth": auth,
                },
                "deployments": [
                    {
                        "name": "SpeechService",
                        "autoscaling_config": scaling,
                        "ray_actor_options": actor,
                    }
                ],
            }
        ],
    }


def _run(path: Path, options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
        applications = [
            application["name"]
            for application in config["applications"]
            if application["import_path"].startswith(BUILDER)
        ]
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        parser.error(f"{path}: not a config of Ray Serve ({error!r})")
    # For a cluster that is started here: its proxy holds all messages of clients, large ones too.
    os.environ.setdefault(*cluster.SMALL_BLOCKS)
    os.environ.setdefault(*cluster.NORMAL_PRIORITY)
    # Before `serve run` does it: starting Ray sets a handler for SIGTERM, which ours replaces.
    with cluster.on_loopback():
        ray.init(options.address, namespace="serve")
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        cli.main(["run", str(path)], standalone_mode=False)
    except Stop:
        for number in SIGNALS:
            signal.signal(number, _exit)
    except SystemExit:  # after an error that it has printed; its status is 0
        return 1
    else:
        return 1
    cut = False
    for application in applications:
        try:
            left = drain(application, options.timeout_s, options.playback_s)
            report_cut(left)
            cut |= left != 0
        except (RayServeException, RayError) as error:  # not begun, or drained from outside
            print(f"{application}: nothing to drain ({error})", file=sys.stderr)
    serve.shutdown()
    ray.shutdown()
    return 1 if cut else 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stop


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
