"""Whether the head that a job would join is there.

Ray waits for a head that has died without end, and says nothing of where it has the address from.
"""

import os
import socket
from pathlib import Path

from ray._common.utils import get_ray_address_file

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
