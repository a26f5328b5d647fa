"""Two machines of network namespaces, and each way in which this project starts Ray on one.

Run by test_open_doors.py as the first process of a PID namespace: whatever is started here ends
with it, however it ends, and so do the networks. Each machine has loopback and one end of a veth
pair; nothing leads to a real address.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.autoscaler._private.util import prepare_config

from helpers import knocking
from helpers.example import ENGLISH, ROOT, VOICE
from sheen.text.normalization import cache_folder

HERE, THERE = "198.51.100.1", "198.51.100.2"  # TEST-NET-2
# Without the other machine's: `ray stop` looks for what to stop among all that it sees.
OWN_PROCESSES = ("unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc")
READY_S = 400
FIXED_PORTS = {6379, 8000, 8076, 8265, 10001, 44217, 44227, 52365}
SAID = "The ferry leaves before noon."

# A training of two workers that meet, and wait until their cluster ends.
JOB = """
import os
import time
from pathlib import Path
import torch
import torch.distributed as dist
from sheen.runs import cluster
from sheen.train import launcher
from sheen.train.config import RunFields

def loop(arguments):
    assert cluster.WORKER_ENV.items() <= os.environ.items()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert total == 2
    Path(arguments["met"]).touch()
    time.sleep(1000)

cluster.connect()
config = RunFields(output="OUTPUT", num_workers=2, gpu=False, cpus_per_worker=0.5, max_failures=0)
launcher.fit(loop, {"met": "MET"}, config, "OUTPUT")
"""
# Beside another Ray: what holds its agent's port here does not listen.
DEMO = """
import socket
import time
from pathlib import Path
import demo_commands
other = socket.socket()
other.bind(("127.0.0.1", 52365))
demo_commands.RUN = Path("OUTPUT")
(demo_commands.RUN / "logs").mkdir()
with demo_commands.ray_head():
    Path("MET").touch()
    time.sleep(1000)
"""
FIXTURE = """
import time
from pathlib import Path
import ray

def test_wait(ray_cluster):
    class Work:  # in here, so that it is sent by value
        def done(self):
            return True

    worker = ray.remote(Work).options(num_cpus=0).remote()
    assert ray.get(worker.done.remote())
    Path("MET").touch()
    time.sleep(1000)
"""
# A driver that joins, and work of its own on each node.
JOIN = """
import time
from pathlib import Path
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from sheen.runs import cluster

class Work:
    def done(self):
        return True

cluster.connect()
while len(nodes := ray.nodes()) < NODES:
    time.sleep(0.5)
places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
work = [ray.remote(Work).options(num_cpus=0, scheduling_strategy=p).remote() for p in places]
assert all(ray.get([worker.done.remote() for worker in work]))
Path("MET").touch()
time.sleep(1000)
"""


def document(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def readme_head() -> tuple[str, str]:
    """What README says to type for a head, with what it exports before, and for Serve on it."""
    blocks = re.findall(r"```sh\n(.*?)```", document("README.md"), re.DOTALL)
    [lines] = [block.splitlines() for block in blocks if "export RAY_AUTH_TOKEN=" in block]
    serve = [line.partition("#")[0] for line in lines if line.startswith("serve run ")]
    head = [line for line in lines if re.match(r"(export|ray start) ", line)]
    return "\n".join(head), serve[0]


def cluster_start(node: str) -> str:
    config = yaml.safe_load(document("cluster.yaml"))
    return "\n".join(config[f"{node}_start_ray_commands"])


class Machines:
    """This namespace as one machine, and a second one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "h"
        self.output = folder / "o"
        self.met = folder / "met"
        self.intruder = folder / "intruder"
        for new in (self.home, self.output):
            new.mkdir()
        self._resolve()
        self.other = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        while os.readlink(f"{self.net}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)
        self.ip(f"link add here type veth peer name there netns {self.other.pid}")
        for enter, end, address, beyond in (
            ([], "here", HERE, THERE),
            (self.enter, "there", THERE, HERE),
        ):
            self.ip("link set lo up", enter)
            self.ip(f"addr add {address}/24 dev {end}", enter)
            self.ip(f"link set {end} up", enter)
            # Ray takes for its own the address from which it would go far away.
            self.ip(f"route add default via {beyond}", enter)

    def ip(self, words: str, enter: Sequence[str] = ()) -> None:
        subprocess.run([*enter, "ip", *words.split()], check=True)

    @property
    def net(self) -> str:
        return f"/proc/{self.other.pid}"

    @property
    def enter(self) -> list[str]:
        """Words before a command that runs on the other machine."""
        return ["nsenter", f"--net={self.net}/ns/net"]

    def _resolve(self) -> None:
        """No name server, and a host name that leads to the network, as on many machines."""
        (self.folder / "resolv").touch()
        hosts = f"127.0.0.1 localhost\n{HERE} {os.uname().nodename}\n"
        (self.folder / "hosts").write_text(hosts)
        for name, target in (("resolv", "/etc/resolv.conf"), ("hosts", "/etc/hosts")):
            subprocess.run(["mount", "--bind", self.folder / name, target], check=True)

    def environment(self) -> dict[str, str]:
        """Of a user who has set nothing, on a machine that may be busy."""
        ours = ("RAY_", "SHEEN_", "PYTEST_", "MALLOC_")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        paths = (ROOT / "tests" / "startup", ROOT, ROOT / "tests", ENGLISH)
        return plain | {
            "HOME": str(self.home),
            # Of this user, where other tests have kept the compiled grammars of normalization.
            "XDG_CACHE_HOME": str(cache_folder().parent),
            "RAY_TMPDIR": str(self.folder / "r"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_worker_niceness": "0",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
            "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "120",
            "RAY_HEAD_IP": HERE,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, words: list[str], elsewhere: bool = False, **extra: str) -> None:
        with (self.folder / "log").open("ab") as log:
            subprocess.Popen(
                [*self.enter, *OWN_PROCESSES, *words] if elsewhere else words,
                cwd=ROOT, env=self.environment() | extra, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def script(self, text: str) -> str:
        return text.replace("MET", str(self.met)).replace("OUTPUT", str(self.output))

    def start_way(self, way: str) -> None:
        python = sys.executable
        if way == "job":
            self.start([python, "-c", self.script(JOB)])
        elif way == "demo":
            self.start([python, "-c", self.script(DEMO)])
        elif way == "tests":
            test = self.folder / "test_wait.py"
            test.write_text(self.script(FIXTURE))
            plugins = ["-p", "conftest", "-p", "no:cacheprovider"]
            self.start([python, "-m", "pytest", *plugins, f"--rootdir={self.folder}", str(test)])
        elif way == "serve":
            self.start(["serve", "run", "serve_config.yaml"])
        elif way == "server":
            self.start([python, "-m", "sheen.serve.run", "serve_config.yaml"])
        elif way == "readme":
            # A head takes jobs some seconds after it answers.
            submit = f"until ray job submit -- python {self.join(1)}; do sleep 1; done"
            head, serve = readme_head()
            self.start(["bash", "-ec", f"{head}\n{serve} &\n{submit}"])
        else:
            self.start_cluster()

    def start_cluster(self) -> None:
        """As `ray up` would, without a cloud: the head's start commands, and a worker's."""
        (self.home / "sheen-env").symlink_to(Path(sys.executable).parent.parent)
        provider = {"type": "local", "head_ip": HERE, "worker_ips": []}
        bootstrap = {"cluster_name": "doors", "provider": provider, "max_workers": 0}
        bootstrap |= {"auth": {"ssh_user": "nobody"}, "file_mounts": {}}
        filled = prepare_config(bootstrap) | {"cluster_synced_files": []}
        (self.home / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(filled))
        self.finish(["ray", "get-auth-token", "--generate"])
        self.finish(["bash", "-c", cluster_start("head")])
        temp = str(self.folder / "w")
        # The first process of a PID namespace: what it has started ends with it.
        stay = f"{cluster_start('worker')}\nsleep infinity"
        self.start(["bash", "-c", stay], elsewhere=True, RAY_TMPDIR=temp)
        address = f"{HERE}:6379"
        self.start(["python", self.join(2)], RAY_AUTH_MODE="token", RAY_ADDRESS=address)

    def finish(self, words: list[str]) -> None:
        with (self.folder / "log").open("ab") as log:
            environment = self.environment()
            subprocess.run(words, env=environment, check=True, stdout=log, stderr=log)

    def join(self, nodes: int) -> str:
        path = self.folder / "join.py"
        path.write_text(self.script(JOIN).replace("NODES", str(nodes)))
        return str(path)

    def ready(self, way: str) -> bool:
        served = way in ("serve", "server", "readme")
        driven = way not in ("serve", "server")
        return (not served or speaks()) and (not driven or self.met.exists())

    def knock(self, name: str, doors: list[knocking.Listener]) -> dict[str, Any]:
        """What the doors of one machine answer to the other."""
        words = [sys.executable, "-m", "helpers.knocking"]
        asked = {
            "host": THERE if name == "worker" else HERE,
            "ports": sorted({door.port for door in doors}),
            "token": self.token(),
            "intruder": str(self.intruder),
        }
        done = subprocess.run(
            words if name == "worker" else [*self.enter, *words],
            input=json.dumps(asked), env=self.environment(), stdout=subprocess.PIPE, text=True,
            check=True,
        )  # fmt: skip
        answers: dict[str, Any] = json.loads(done.stdout)
        return answers

    def token(self) -> str:
        """What whoever started it would send."""
        files = [*self.home.glob(".ray/auth_token"), *self.output.glob("ray-token")]
        return files[0].read_text() if files else ""


def speaks() -> bool:
    body = {"model": "sheen", "voice": VOICE, "input": SAID}
    request = urllib.request.Request(
        "http://127.0.0.1:8000/v1/audio/speech",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return len(answer.read()) > 1000
    except OSError:
        return False


def main(way: str, folder: Path, expected: dict[str, list[list[str]]]) -> dict[str, Any]:
    """What listens on each machine, once all that is expected does, and what it answers."""
    machines = Machines(folder)
    machines.start_way(way)
    nets = {"head": Path("/proc/self/net"), "worker": Path(f"{machines.net}/net")}
    used = nets if way == "cluster" else {way: nets["head"]}
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        ready = machines.ready(way)  # first: a server opens more until it is
        doors = {name: knocking.listeners(net) for name, net in used.items()}
        if ready and all(
            {tuple(row) for row in expected[name]} <= {kind(door) for door in doors[name]}
            for name in used
        ):
            break
        time.sleep(0.5)
    return {
        "ready": ready,
        "doors": {name: [(*kind(door), door.port) for door in doors[name]] for name in used},
        "answers": {name: machines.knock(name, doors[name]) for name in used},
        "token": machines.token(),
        "intruder": machines.intruder.exists(),
        "home": [entry.name for entry in machines.home.iterdir()],
    }


def kind(door: knocking.Listener) -> tuple[str, str, str]:
    """Process, place and port, as docs/ports.md has them."""
    port = str(door.port) if door.port in FIXED_PORTS else "any"
    return door.role, place(door.address), port


def place(address: str) -> str:
    if address.startswith("127.") or address == "::1":
        return "127.0.0.1"
    return "all" if address in ("0.0.0.0", "::") else "node"


if __name__ == "__main__":
    result = main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
    (Path(sys.argv[2]) / "result.json").write_text(json.dumps(result))
