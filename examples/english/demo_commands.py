"""The demo's commands: a Ray head, a server, submitted jobs; their logs, their progress, their end.

Owns the processes that the demo starts, where their output goes, and the time that each stage
takes. What they are told to do is the demo's business.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

from sheen.runs import cluster

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ROOT / "runs" / "demo"
PORT = 8000  # http_options in serve_config.yaml
READY_TIMEOUT_S = 180

# The lines of a job's log that say how far it is; everything is in the log file.
PROGRESS = re.compile(
    r"(step \d+/|recordings encoded|utterances for training|rejected,|\berror\b|checkpoint in"
    r"|computing on|spoken \d+/|EncodeWorker\): \d+/\d\d)"
)


class StepFailed(RuntimeError):
    """A step of the demo ended badly; its log says why."""


@contextmanager
def step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """A stage of the demo: its name and its time on the screen, and `seconds[name]`."""
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
    print(f"   {name}: {seconds[name]:.1f} s", flush=True)


class Process:
    """A long-running command of ours: its log, its end when the `with` block ends."""

    def __init__(self, name: str, words: list[str], environment: dict[str, str]) -> None:
        self.log = RUN / "logs" / f"{name}.log"
        print(f"   $ {' '.join(words)}", flush=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                words,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the demo, which stops them in order
            )

    def wait_for(self, what: str, ready: Callable[[], bool]) -> None:
        """Return once it is ready; StepFailed when the command ends before, or takes too long."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        try:
            while not ready():
                if self._process.poll() is not None:
                    self._fail(f"it exited with status {self._process.returncode}")
                if time.monotonic() > deadline:
                    self._fail(f"{what} was not ready within {READY_TIMEOUT_S} s")
                time.sleep(0.5)
        except BaseException:  # Ctrl-C too: nothing that was started may stay
            self.__exit__()
            raise

    def _fail(self, what: str) -> None:
        raise StepFailed(f"{what}; end of {self.log}:\n{_tail(self.log)}")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        for sign, patience_s in ((signal.SIGINT, 20), (signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            if self._process.poll() is not None:
                return
            # `serve run` shuts its application down on SIGINT; `ray start --block` stops its node
            # on SIGTERM.
            os.killpg(self._process.pid, sign)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue


@contextmanager
def ray_head() -> Iterator[dict[str, str]]:
    """A Ray head of the demo's own; yields the environment in which jobs reach it.

    Its temporary folder is its own too: in the common one it would leave its address behind, and
    whatever looks for a cluster on this machine would wait for it long after the demo.
    """
    # Without its agent a head takes no jobs, and another Ray may have the agent's default port.
    port, dashboard, agent = _free_port(), _free_port(), _free_port()
    environment = os.environ | {
        # Of this demo alone: the home folder's token stays as it is.
        **cluster.loopback_settings(RUN),
        # Jobs run `python` from the PATH of the node's Ray process.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    words = ["ray", "start", "--head", "--block", f"--port={port}"]
    words += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    # Short: paths of sockets have at most 107 bytes.
    with TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True) as folder:
        head = Process("ray-head", [*words, f"--temp-dir={folder}"], environment)
        healthy = f"http://127.0.0.1:{agent}/api/local_raylet_healthz"
        head.wait_for("the head", lambda: _answers(healthy))
        with head:
            yield environment


def start_server(config: Path, url: str, environment: dict[str, str]) -> Process:
    """`serve run` of a config, once its application answers at `url`."""
    server = Process("serve", ["serve", "run", str(config)], environment)
    server.wait_for("the endpoint", lambda: _answers(f"{url}/health"))
    return server


def serve_config(checkpoint: Path, folder: Path) -> Path:
    """The committed serve config with another checkpoint, as a file in `folder`."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    (application,) = config["applications"]
    application["args"]["model"] = str(checkpoint)
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return path


def submit(name: str, job: str, configs: str, environment: dict[str, str], *flags: str) -> None:
    """Run jobs/`job`.py on the head with `configs`/`job`.yaml; its log is `name`'s."""
    words = ["python", f"jobs/{job}.py", "--config", f"{configs}/{job}.yaml", *flags]
    end = _run(name, ["ray", "job", "submit", "--working-dir", ".", "--", *words], environment)
    # A busy head may close the connection of the log: docs/upstream.md.
    while unfinished := re.search(r"Status for job '(\S+)': (PENDING|RUNNING)", end):
        end = _run(name, ["ray", "job", "logs", "--follow", unfinished[1]], environment)
    if not re.search(r"Job '\S+' succeeded", end):
        raise StepFailed(f"{name} did not succeed; end of its log:\n{end}")


def _run(name: str, words: list[str], environment: dict[str, str]) -> str:
    """Run a command to its end: everything to its log, its progress to the screen. Returns the end
    of the log."""
    print(f"   $ {' '.join(words)}", flush=True)
    log = RUN / "logs" / f"{name}.log"
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            if PROGRESS.search(line):
                print("   " + re.sub(r"\x1b\[\d+m|\(RayTrainWorker pid=\d+\)", "", line).rstrip())
                sys.stdout.flush()
    if process.returncode:
        raise StepFailed(
            f"{name} exited with status {process.returncode}; end of {log}:\n{_tail(log)}"
        )
    return _tail(log)


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-lines:])


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:  # refused, timed out, or an HTTP error status
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def cpu_precision() -> str:
    """bfloat16 where the CPU computes in it: 1.4 times as fast; emulated, it is slower."""
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


def compiles() -> bool:
    """Whether torch.compile finds its C++ compiler here."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None
