"""The whole path on this machine: recordings -> codes -> checkpoint -> speech over HTTP.

Run by `make demo`. It starts a local Ray head, submits the encode and the train job, runs the
serve config, sends concurrent requests with the official `openai` client, and writes
`runs/demo/report.html`. It stops what it started, and fails loudly when any step fails.
"""

import os
import re
import secrets
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

from demo_report import Spoken, speak_all, write_report

ROOT = Path(__file__).resolve().parent.parent.parent
RUN = ROOT / "runs" / "demo"
SERVE_URL = "http://127.0.0.1:8000"  # http_options in serve_config.yaml
READY_TIMEOUT_S = 180

# The lines of a job's log that say how far it is; everything is in the log file.
PROGRESS = re.compile(
    r"(step \d+/|recordings encoded|utterances to train|rejected,|error|checkpoint in|computing on"
    r"|EncodeWorker\): \d+/\d\d)"
)


class StepFailed(RuntimeError):
    """A step of the demo ended badly; its log says why."""


def main() -> int:
    started = time.monotonic()
    if RUN.exists():
        print(f"replacing {RUN}")
        shutil.rmtree(RUN)
    (RUN / "logs").mkdir(parents=True)
    if not _port_is_free(8000):
        print("demo: error: port 8000 is in use; stop what listens there", file=sys.stderr)
        return 1
    seconds: dict[str, float] = {}
    try:
        with _step("ray head", seconds):
            head = _start_head()
        with head as environment:
            with _step("base model", seconds):
                script = str(ROOT / "examples" / "digits" / "make_base.py")
                base = str(RUN / "base")
                _run("base", [sys.executable, script, "--output", base], environment)
            with _step("encode", seconds):
                _submit("encode", environment, "--output", str(RUN / "codes"))
            with _step("train", seconds):
                _submit(
                    "train",
                    environment,
                    *("--data", str(RUN / "codes"), "--model", str(RUN / "base")),
                    *("--output", str(RUN / "train")),
                )
            with _step("serve", seconds):
                server = _start_server(environment)
            with server:
                with _step("speak", seconds):
                    spoken: list[Spoken] = speak_all(SERVE_URL, RUN)
                with _step("report", seconds):
                    write_report(RUN, spoken, seconds)
    except StepFailed as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    print(f"\nwhole demo: {time.monotonic() - started:.0f} s. Open {RUN / 'report.html'}")
    print("Speak again: serve run serve_config.yaml, or")
    print(
        f'  python -m sheen "four two seven" --model {RUN}/train/checkpoint --voice slt -o out.wav'
    )
    return 0


@contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
    print(f"   {name}: {seconds[name]:.1f} s", flush=True)


def _start_head() -> "_Process":
    port, dashboard = _free_port(), _free_port()
    token = RUN / "ray-token"  # of this demo alone; the home folder's stays as it is
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), "utf-8")
    environment = os.environ | {
        # Jobs run `python` from the PATH of the node's Ray process.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }
    words = ["ray", "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1"]
    words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    head = _Process("ray-head", words, environment)
    head.wait_for("the head", lambda: "Ray runtime started" in head.log.read_text("utf-8"))
    return head


def _start_server(environment: dict[str, str]) -> "_Process":
    server = _Process("serve", ["serve", "run", "serve_config.yaml"], environment)
    server.wait_for("the endpoint", lambda: _answers(f"{SERVE_URL}/health"))
    return server


class _Process:
    """A long-running command of ours: its log, its end when the `with` block ends."""

    def __init__(self, name: str, words: list[str], environment: dict[str, str]) -> None:
        self.log = RUN / "logs" / f"{name}.log"
        self.environment = environment
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

    def __enter__(self) -> dict[str, str]:
        return self.environment

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


def _submit(name: str, environment: dict[str, str], *flags: str) -> None:
    job = ["python", f"jobs/{name}.py", "--config", f"examples/digits/{name}.yaml", *flags]
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            _run(name, ["ray", "job", "submit", "--working-dir", ".", "--", *job], environment)
        except StepFailed as error:
            # A head answers before the agent that takes jobs is up.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(2)
        else:
            return


def _run(name: str, words: list[str], environment: dict[str, str]) -> None:
    """Run a command to its end: everything to its log, its progress to the screen."""
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


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


if __name__ == "__main__":
    sys.exit(main())
