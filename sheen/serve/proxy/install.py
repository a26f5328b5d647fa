"""Puts `sheen.serve.proxy.middleware` into Ray's HTTP proxies, from a replica.

Owns the call to a proxy, its repetition, the counts that it brings back, and the choice of a
parser. Serve takes middleware for its proxies from a variable of their environment alone, which a
started cluster no longer reads, and which knows nothing of an application's `args`. So each replica
installs it, in the proxies that send it requests: the one on its node and the one on the head.
Where that fails, the log says so, and the replica's own limits remain (docs/upstream.md).
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_NAMESPACE, SERVE_PROXY_NAME
from ray.serve._private.utils import format_actor_name, get_head_node_id
from uvicorn.protocols.http.h11_impl import H11Protocol

from sheen.serve.config import BATCH, MAX_BODIES, SPEECH, VOICES, ClientLimits
from sheen.serve.proxy.middleware import BodyRule, ProxyMiddleware, Rules

logger = logging.getLogger(__name__)

HEADER_BYTES = 64 * 1024
"""Of incomplete headers; more of them are answered with 400."""
REPEAT_S = 10.0
"""Seconds between calls: longest time until a new proxy has the middleware, and until what a proxy
has refused is counted."""
RETRY_S = 0.5
"""Seconds before the second call, and twice as many before each further one, up to REPEAT_S."""
CALL_S = 5.0
"""Longest time of a call, seconds, and longest wait of a starting replica for the first."""


def rules_of(limits: ClientLimits) -> Rules:
    """The rules of an application with these limits."""
    return Rules(
        body=BodyRule(*limits.body("")),
        routes={path: BodyRule(*limits.body(path)) for path in (BATCH, SPEECH, VOICES)},
        held_bytes=MAX_BODIES * limits.max_body_bytes,
        message_bytes=limits.max_body_bytes,
    )


Counts = Mapping[tuple[int, str], int]
"""Numbers of requests that a proxy has refused, by the status and code of the error."""


def install(proxy: Any, application: str, rules: Rules) -> Counts:
    """Runs in a proxy's actor: set the rules of an application. Returns what the proxy has refused
    of it since the last call."""
    starting = proxy._start_http_server_task
    if not (starting.done() and starting.result()[1].config.loaded):
        return {}
    config = starting.result()[1].config
    middleware = config.loaded_app
    if not isinstance(middleware, ProxyMiddleware):
        middleware = ProxyMiddleware(middleware, proxy.http_proxy.proxy_router)
        config.loaded_app = middleware  # of connections from now on, as what follows
        # Under httptools, uvicorn loses the body of a request that also offers to change to HTTP/2,
        # sends chunks to clients of HTTP/1.0, and takes headers of any size (docs/upstream.md).
        config.http_protocol_class = H11Protocol
        config.h11_max_incomplete_event_size = HEADER_BYTES
    middleware.rules[application] = rules
    return middleware.refused.pop(application, Counter())


class Proxies:
    """Keeps the proxies of a replica's application informed, in a thread."""

    def __init__(
        self, application: str, limits: ClientLimits, refused: Callable[[Counts], object]
    ) -> None:
        """Waits for the first call. `refused` gets the counts of each call that has some."""
        self._application, self._rules, self._refused = application, rules_of(limits), refused
        self._failing: set[str] = set()
        self._closed, self._tried = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sheen-proxies", daemon=True)
        self._thread.start()
        self._tried.wait(CALL_S)

    def close(self) -> None:
        self._closed.set()
        self._thread.join(CALL_S)

    def _follow(self) -> None:
        wait_s = RETRY_S
        while True:
            try:
                nodes = {ray.get_runtime_context().get_node_id(), get_head_node_id()}
                for node in nodes:
                    self._tell(node)
            except (RayError, AssertionError) as error:  # AssertionError: the head is not there
                logger.warning("the proxies cannot be found: %s", error)
            self._tried.set()
            if self._closed.wait(wait_s):
                return
            wait_s = min(2 * wait_s, REPEAT_S)

    def _tell(self, node: str) -> None:
        try:
            proxy = ray.get_actor(format_actor_name(SERVE_PROXY_NAME, node), SERVE_NAMESPACE)
        except ValueError:  # there is none
            return
        try:
            call: Any = proxy.__ray_call__.remote(install, self._application, self._rules)
            counts: Counts = ray.get(call, timeout=CALL_S)
        except RayError as error:
            if node not in self._failing:
                self._failing.add(node)
                logger.warning(
                    "the proxy on node %s passes incomplete bodies and large messages on to this "
                    "replica, whose own limits apply: %s",
                    node,
                    error,
                )
            return
        self._failing.discard(node)
        if counts:
            logger.info("the proxy on node %s has refused %s", node, dict(counts))
            self._refused(counts)
