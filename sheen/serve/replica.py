"""Setup of a replica's process in Ray Serve: its log, and a port on loopback.

Owns what Serve has no setting for. A module of its own: Serve pickles a deployment with what its
methods refer to when it is decorated, so that nothing defined further down in its module is known.
"""

import logging
from typing import Any

from ray.serve._private import replica
from ray.util import get_node_ip_address


def log_like_serve() -> None:
    """Let Sheen's own log lines (requests, batch fill, endings) go where Serve's go."""
    ours = logging.getLogger("sheen")
    ours.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        ours.addHandler(handler)


def stay_on_loopback() -> None:
    """If Ray listens on loopback, open the replica's port for other deployments there too.

    Called before Serve opens it, which it does on every address (docs/upstream.md).
    """
    node = get_node_ip_address()
    if node != "127.0.0.1":
        return
    module: Any = replica
    add_port = module.add_port_to_grpc_server

    def add_port_here(server: Any, address: str) -> int:
        port: int = add_port(server, address.replace("[::]", node))
        return port

    module.add_port_to_grpc_server = add_port_here
