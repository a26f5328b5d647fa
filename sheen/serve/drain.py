"""`python -m sheen.serve.drain`: end what is being spoken, let nobody in, then shut Serve down.

Owns an orderly end. `serve shutdown`, and Ctrl-C under `serve run`, end Ray's HTTP proxies at once
and with them every stream (seen with Ray 2.60); a replica that is replaced ends what it has begun
without any of this.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import ray
from ray import serve

POLL_S = 0.5


def drain(application: str, timeout_s: float) -> int:
    """Tell every replica; wait until nothing is spoken, or for `timeout_s`. Requests left."""
    handle = serve.get_app_handle(application)
    deadline = time.monotonic() + timeout_s
    while True:
        left = int(sum(handle.broadcast("drain").results(timeout_s=timeout_s)))
        if not left or time.monotonic() > deadline:
            return left
        print(f"{left} requests are being spoken", file=sys.stderr)
        time.sleep(POLL_S)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sheen.serve.drain",
        description="End what is being spoken, answer new requests with 503, then shut Serve down.",
    )
    parser.add_argument("--app", default="sheen", help="application (default: sheen)")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="seconds (default: 300)")
    parser.add_argument(
        "--keep", action="store_true", help="leave Serve running; the application stays drained"
    )
    options = parser.parse_args(arguments)
    ray.init("auto", namespace="serve", log_to_driver=False)
    left = drain(options.app, options.timeout_s)
    if not options.keep:
        serve.shutdown()  # type: ignore[no-untyped-call]
    if left:
        print(f"{left} requests were still being spoken", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
