"""Every listening socket of a network namespace, and what each answers to whoever has no secret.

Owns no Ray. Sockets are read from /proc. Every method of Ray's services is called, by Ray's own
descriptions of them, empty and without the token, and so are paths of its HTTP servers.
"""

import http.client
import importlib
import ipaddress
import json
import os
import pkgutil
import socket
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import grpc

PATIENCE_S = 5
LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp
ROLES = {
    "gcs_server": "GCS",
    "raylet/raylet": "raylet",
    "DashboardAgent": "agent",
    "RuntimeEnvAgent": "runtime env agent",
    "dashboard.py": "dashboard",
    "monitor.py": "autoscaler",
    "ray.util.client.server": "Ray client",
    "ray::": "worker",
}
PATHS = (
    "GET /metrics",
    "POST /api/jobs/",
    "GET /api/jobs/",
    "POST /api/job_agent/jobs/",
    "GET /api/v0/logs",
    "GET /nodes?view=summary",
    "POST /get_or_create_runtime_env",
    "GET /",
)
# Of C++ alone.
UNDESCRIBED = (
    "/ray.rpc.ObjectManagerService/Push",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.syncer.RaySyncer/StartSync",
)
# gRPC's own, which Ray asks for no token: is it well, and which services are there.
FOR_EVERYBODY = (
    "/grpc.health.v1.Health/Check",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)
# Without a node's id, StartSync ends the process it calls (docs/upstream.md).
NODE = ("node_id", "ab" * 28)
# With the token, as a control.
HARMLESS = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.NodeManagerService/GetSystemConfig",
    "/ray.rpc.CoreWorkerService/NumPendingTasks",
    "/ray.rpc.ReporterService/HealthCheck",
    "/ray.rpc.RayletDriver/ClusterInfo",
)


class Listener(NamedTuple):
    role: str
    address: str
    port: int


def listeners(net: Path, of: Collection[int] | None = None) -> list[Listener]:
    """The sockets that listen in the namespace of /proc/PID/net, and whose each is; `of`: of these
    processes alone."""
    owners = {inode: pid for pid, inode in _sockets() if of is None or int(pid) in of}
    found = []
    for line in (row for name in ("tcp", "tcp6") for row in _rows(net / name)):
        local, state, inode = line[1], line[3], line[9]
        if state == LISTEN and inode in owners:
            address, port = local.split(":")
            found.append(Listener(_role(owners[inode]), _address(address), int(port, 16)))
    return sorted(set(found))


def _rows(table: Path) -> list[list[str]]:
    with suppress(FileNotFoundError):
        return [line.split() for line in table.read_text().splitlines()[1:]]
    return []


def _sockets() -> Iterator[tuple[str, str]]:
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # a process that has just ended
            for entry in folder.iterdir():
                with suppress(OSError):
                    target = os.readlink(entry)
                    if target.startswith("socket:["):
                        yield folder.parent.name, target[8:-1]


def _role(pid: str) -> str:
    command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return next((role for part, role in ROLES.items() if part in command), "driver")


def _address(written: str) -> str:
    """/proc's form: words of four bytes, each in the machine's order."""
    raw = bytes.fromhex(written)
    if sys.byteorder == "little":
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    address = ipaddress.ip_address(raw)
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def knock(host: str, ports: list[int], token: str, intruder: str) -> dict[int, dict[str, Any]]:
    """What each port answers to no secret and, as a control, to the token.

    `intruder` is the file that a job would make which somebody without the token submits.
    """
    methods = list(_methods())
    return {port: _knock(host, port, methods, token, intruder) for port in ports}


def _knock(host: str, port: int, methods: list[str], token: str, intruder: str) -> dict[str, Any]:
    try:
        socket.create_connection((host, port), PATIENCE_S).close()
    except OSError as error:
        return {"closed": str(error)}
    if _http(host, port, PATHS[0], intruder):
        return {"http": {path: _http(host, port, path, intruder) for path in PATHS}}
    called = _call(host, port, methods, None)
    if called is None:
        return {"silent": True}
    return {"grpc": called, "with the token": _call(host, port, list(HARMLESS), token)}


def _http(host: str, port: int, request: str, intruder: str) -> tuple[int, str] | None:
    """Status and body; None from what speaks something else."""
    verb, path = request.split()
    body = json.dumps({"entrypoint": f"touch {intruder}"}) if verb == "POST" else None
    connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
    try:
        connection.request(verb, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _methods() -> Iterator[str]:
    for package in ("ray.core.generated", "ray.serve.generated"):
        generated = importlib.import_module(package)
        for module in pkgutil.iter_modules(generated.__path__):
            if module.name.endswith("_pb2"):
                loaded = importlib.import_module(f"{package}.{module.name}")
                for service in loaded.DESCRIPTOR.services_by_name.values():
                    yield from (f"/{service.full_name}/{method.name}" for method in service.methods)
    yield from (*UNDESCRIBED, *FOR_EVERYBODY)


def _call(
    host: str, port: int, methods: list[str], token: str | None
) -> dict[str, list[str]] | None:
    """Status -> the methods that gave it; None from what speaks something else."""
    metadata = [NODE, ("authorization", f"Bearer {token}")] if token else [NODE]
    found: dict[str, list[str]] = {}
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        try:
            grpc.channel_ready_future(channel).result(PATIENCE_S)
        except grpc.FutureTimeoutError:
            return None
        for method in methods:
            try:
                channel.unary_unary(method)(b"", timeout=PATIENCE_S, metadata=metadata)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
            found.setdefault(status, []).append(method)
    return found


def answer(found: dict[str, Any]) -> str:
    """What a port said to whoever has no secret, in the words of docs/ports.md."""
    if "http" in found:
        status, text = found["http"]["GET /metrics"]
        if status == 200 and text.startswith("# HELP"):
            return "figures"
        statuses = {request: reply and reply[0] for request, reply in found["http"].items()}
        return "token" if set(statuses.values()) == {401} else f"open: {statuses}"
    if "grpc" in found:
        called = found["grpc"]
        asks = {status: set(names) - set(FOR_EVERYBODY) for status, names in called.items()}
        methods = {s: names for s, names in asks.items() if names and s != "UNIMPLEMENTED"}
        return "token" if set(methods) == {"UNAUTHENTICATED"} else f"open: {methods}"
    return f"open: {found}"


if __name__ == "__main__":
    json.dump(knock(**json.load(sys.stdin)), sys.stdout)
