"""Fixtures of all tests: one local Ray cluster, and the path's real products made once, small.

Everything here is the real thing at small size: the example's recordings, the small codec, a base
model of a few thousand parameters, encoded and trained by the jobs' own code. What is slow to
import, the fixtures that need it import: a process that hands out tests needs none of it.
"""

import gc
import os
import pickle
import runpy
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
from filelock import FileLock
from xdist.scheduler import LoadScopeScheduling

from sheen.runs import cluster

UNIT = Path(__file__).parent / "unit"
# Of every Python process that tests start, and of this one: see there.
STARTUP = Path(__file__).parent / "startup"
os.environ["PYTHONPATH"] = os.pathsep.join(
    dict.fromkeys(filter(None, (str(STARTUP), *os.environ.get("PYTHONPATH", "").split(os.pathsep))))
)
runpy.run_path(str(STARTUP / "sitecustomize.py"))

# Before Ray or torch is imported: no other machine and no other user may reach the clusters of the
# tests, a token left in the home folder must not matter, and two cores do not bear several threads
# in several processes.
os.environ.update(cluster.loopback_settings(cluster.token_folder()))
os.environ["OMP_NUM_THREADS"] = "1"
# In a runtime environment each worker would start Python, and import Ray, once more to read it.
os.environ.update(cluster.WORKER_ENV)
os.environ["HF_HUB_OFFLINE"] = "1"
# Ray's default for workers is nice 15: beside anything else that computes they would stand still.
# Nobody reads the metrics of these clusters.
os.environ.update(RAY_worker_niceness="0", RAY_enable_metrics_collection="0")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Where somebody else has the whole machine, Ray's half a minute is too short.
os.environ.update(RAY_raylet_start_wait_time_s="120")
# A worker that waits for a first task is seldom one that the task can use.
os.environ.update(RAY_prestart_worker_first_driver="0")
# Ray ends idle workers beyond the number of CPUs after a second, the oldest first: those that have
# imported what the next task needs.
os.environ.update(RAY_num_workers_soft_limit="8")
# And Serve's default for a proxy that starts or answers late is to kill it.
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "120"
os.environ["RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S"] = "120"
# It lists all files of a cluster's log ten times a second, while these are few.
os.environ.update(RAY_LOG_MONITOR_MANY_FILES_THRESHOLD="0", LOG_NAME_UPDATE_INTERVAL_S="1")
# Of Ray Train: how often it looks whether workers have ended, and a process for every run that
# watches for nodes to be taken away.
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"
os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
if threading.current_thread() is threading.main_thread():
    # A shell's background job ignores Ctrl-C, and so would what tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if TYPE_CHECKING:
    from helpers.browser import Browser
    from helpers.measured import Measured
    from helpers.resident import Resident
    from sheen.codec.snac import Codec
    from sheen.engine.voice import Voice
    from sheen.scoring.codec import Recording
    from sheen.scoring.speaker_id import SpeakerProfiles

Made = Callable[[str, Callable[[Path], None]], Path]
Computed = Callable[[str, Callable[[], Any]], Any]

hypothesis.settings.register_profile("full", deadline=None, print_blob=True, max_examples=30)
hypothesis.settings.register_profile(
    "fast", parent=hypothesis.settings.get_profile("full"), max_examples=10
)
hypothesis.settings.load_profile("full")

SEED = "TEST_SHEEN_SEED"
# Read by what tests draw at random; the processes of one run inherit it.
os.environ.setdefault(SEED, str(secrets.randbelow(2**32)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray leaves sockets and files open, of which the garbage collector may tell in any test that
    runs in the same process. Without Ray, what is left open is a fault of ours."""
    if any(not item.path.is_relative_to(UNIT) for item in items):
        for item in items:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


def pytest_collection_finish() -> None:
    """Modules stay: the garbage collector need not look at what they hold again and again."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """With `--dist loadfile`: a folder of those that start clusters stays with one process too, so
    that nothing its files share is made twice."""
    if config.getoption("dist") != "loadfile":
        return None

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder in ("tests/ray", "tests/e2e") else file

    return ByFolder(config, log)


def pytest_report_header() -> str:
    return f"random moments: {SEED}={os.environ[SEED]}"


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`made_once(name, make)`: a folder that all the processes of this run read, and that the first
    to ask for it made."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        target, done = folder / "made-once" / name, folder / "made-once" / f"{name}.done"
        target.parent.mkdir(exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not done.exists():
                make(target)
                done.touch()
        return target

    return made


@pytest.fixture(scope="session")
def computed_once(made_once: Made) -> Computed:
    """`computed_once(name, compute)`: what the first process to ask for it computed."""

    def computed(name: str, compute: Callable[[], Any]) -> Any:
        def make(file: Path) -> None:
            file.write_bytes(pickle.dumps(compute()))

        return pickle.loads(made_once(name, make).read_bytes())

    return computed


@pytest.fixture(scope="session")
def two_processes(made_once: Made) -> Path:
    """What test modules' `of_two` left in two processes: `helpers.spawned`."""
    from helpers.spawned import take_two

    return made_once("two-processes", take_two)


@pytest.fixture(scope="session")
def codec() -> "Codec":
    from helpers.example import CODEC
    from sheen.codec.snac import load_codec

    return load_codec(str(CODEC))


@pytest.fixture(scope="session")
def profiles(computed_once: Computed) -> "SpeakerProfiles":
    from helpers.example import RATE, VOICES, clips_of, read_clip
    from sheen.scoring.speaker_id import SpeakerProfiles

    def fit() -> SpeakerProfiles:
        few = {voice: [read_clip(clip) for clip in clips_of(voice)[2:8]] for voice in VOICES}
        return SpeakerProfiles.fit(few, RATE)

    found: SpeakerProfiles = computed_once("profiles", fit)
    return found


@pytest.fixture(scope="session")
def recordings() -> "list[Recording]":
    """Two recordings of each of the voices that the small codec is measured on."""
    from helpers.example import clips_of, read_clip
    from helpers.measured import CODED
    from sheen.scoring.codec import Recording

    clips = [clip for voice in CODED for clip in clips_of(voice)[8:10]]
    return [Recording(clip.id, read_clip(clip), clip.text, clip.speaker) for clip in clips]


@pytest.fixture(scope="session")
def speed_timed_briefly() -> Iterator[None]:
    from sheen.scoring import code_usage

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_usage, "SPEED_SECONDS", 0.2)
        yield


@pytest.fixture(scope="session")
def measured(
    codec: "Codec",
    recordings: "list[Recording]",
    profiles: "SpeakerProfiles",
    speed_timed_briefly: None,
    computed_once: Computed,
) -> "Measured":
    """The small codec, scored by the real ASR."""
    from helpers.recogniser import tiny_en
    from sheen.scoring.asr.transcribers import open_transcriber
    from sheen.scoring.codec import measure_codec
    from sheen.scoring.wer import normalize_english

    def measure() -> "Measured":
        return measure_codec(
            codec,
            "small",
            recordings,
            asr=open_transcriber(tiny_en()),
            profiles=profiles,
            normalize=normalize_english,
        )

    found: Measured = computed_once("measured", measure)
    return found


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of two CPUs, whatever the machine has, as a job starts one.

    Nothing but what the job does itself keeps it on loopback: tests/ray/test_loopback.py looks.
    """
    import ray
    from ray._private import ray_constants

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR)
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
        patch.setenv("RAY_ADDRESS", "local")
        cluster.connect(num_cpus=2, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def serve_port(ray_cluster: None) -> Iterator[int]:
    """Of Serve on the cluster, one for all applications. Whoever ends it has to be an earlier file:
    tests/e2e/test_drain.py."""
    from ray import serve

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    yield port
    serve.shutdown()


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    from helpers.browser import Browser

    with Browser() as browser:
        yield browser


@pytest.fixture(scope="session")
def corpus(made_once: Made) -> Path:
    """An LJSpeech folder of 16 short recordings, 4 per voice, from the example."""
    from helpers.example import VOICES, clips_of, copy_corpus

    # Of these, training holds out two texts: what a text gains is measured against another.
    clips = [clip for voice in VOICES for clip in clips_of(voice)[2:6]]
    return made_once("corpus", lambda folder: copy_corpus(clips, folder))


@pytest.fixture(scope="session")
def encoded(ray_cluster: None, corpus: Path, made_once: Made) -> Path:
    """The corpus, encoded by the job."""
    from helpers.example import CODEC
    from sheen.encode.config import EncodeConfig
    from sheen.encode.job import run as encode

    def make(folder: Path) -> None:
        fields = {"input": str(corpus), "output": str(folder), "codec": str(CODEC)}
        assert encode(EncodeConfig(**fields, num_workers=1))["rows_out"] == 16

    return made_once("encoded", make)


@pytest.fixture(scope="session")
def base(made_once: Made) -> Path:
    """An untrained Qwen3 of two thin layers and its character tokenizer."""
    from helpers.example import ENGLISH, load_script

    def make(folder: Path) -> None:
        script = load_script(ENGLISH / "make_base.py")
        script.main(["--output", str(folder), "--hidden-size", "64", "--layers", "2"])

    return made_once("base", make)


@pytest.fixture(scope="session")
def resident(ray_cluster: None) -> "Resident":
    from helpers.resident import Resident

    return Resident()


@pytest.fixture(scope="session")
def trained(
    resident: "Resident",
    encoded: Path,
    base: Path,
    made_once: Made,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The output folder of a short training run: checkpoint/ and metrics.jsonl."""
    from helpers.training import train_config
    from sheen.train.job import run as train

    output = made_once(
        "trained", lambda folder: resident.train(train, train_config(encoded, base, folder))
    )
    # Tests run the job there again, and one process at a time may.
    return Path(shutil.copytree(output, tmp_path_factory.mktemp("trained") / "train"))


@pytest.fixture(scope="session")
def checkpoint(base: Path, made_once: Made) -> Path:
    """A checkpoint folder that no training made."""
    from helpers.tiny_voice import save_checkpoint

    return made_once("checkpoint", lambda folder: save_checkpoint(folder, base))


@pytest.fixture(scope="session")
def voice(checkpoint: Path) -> "Voice":
    from sheen.engine.voice import load_voice

    return load_voice(str(checkpoint))
