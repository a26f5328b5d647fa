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
from ray.exceptions import RayError

POLL_S = 0.5
TELL_S = 5.0
ANSWER_S = 10.0


def drain(application: str, timeout_s: float, hear_s: float) -> int:
    """Tell every replica; wait until nothing is spoken, for `timeout_s` at most, then until what
    was sent is heard, for `hear_s` at most. Requests left."""
    handle = serve.get_app_handle(application)
    began = told = time.monotonic()
    inside, quiet_since = -1, None
    while (now := time.monotonic()) < began + timeout_s:
        unheard_s = 0.0
        try:
            answers = handle.broadcast("drain").results(timeout_s=ANSWER_S)
        except (RayError, TimeoutError) as error:  # a replica that has ended, or is slow
            print(f"a replica does not answer: {error}", file=sys.stderr)
        else:
            inside = sum(requests for requests, _ in answers)
            unheard_s = max((seconds for _, seconds in answers), default=0.0)
            if not inside:
                quiet_since = quiet_since or now
                if not unheard_s or now >= quiet_since + hear_s:
                    return 0
        if now >= told + TELL_S:
            told = now
            print(f"{inside} requests, {unheard_s:.0f} s of audio to be heard", file=sys.stderr)
        time.sleep(POLL_S)
    return max(0, inside)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sheen.serve.drain",
        description="End what is being spoken, answer new requests with 503, then shut Serve down.",
    )
    parser.add_argument("--app", default="sheen", help="application (default: sheen)")
    parser.add_argument("--timeout-s", type=float, default=300.0, help="seconds (default: 300)")
    parser.add_argument(
        "--hear-s",
        type=float,
        default=30.0,
        help="longest wait for listeners to hear what was made sooner than they play it, seconds "
        "(default: 30)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave Serve running; the application stays drained"
    )
    options = parser.parse_args(arguments)
    ray.init("auto", namespace="serve", log_to_driver=False)
    left = drain(options.app, options.timeout_s, options.hear_s)
    if not options.keep:
        serve.shutdown()  # type: ignore[no-untyped-call]
    if left:
        print(f"{left} requests were still being spoken", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
