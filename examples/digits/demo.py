"""The whole path on this machine: a small model that speaks learns a voice it has never heard.

Run by `make demo`. It starts a local Ray head and submits the jobs: encode the corpus, evaluate the
committed voice, fine-tune it on the corpus, evaluate the result. Then it serves that, sends
concurrent requests with the official `openai` client, prints what changed, and writes
`runs/demo/report.html`. It stops what it started, and fails loudly when any step fails.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import yaml
from demo_commands import ROOT, RUN, StepFailed, port_is_free, ray_head, start_server, submit
from demo_comparison import as_text, choose_clips, comparison, read_results
from demo_report import write_report
from demo_requests import speak_all

NEW_VOICE = "kal16"
PER_VOICE = 25
"""Held-out strings that each voice speaks before and after, of 100: enough to see whether a voice
came or went, in time that a demo can spend."""
OLD_VOICES = "examples/digits/old-voices.parquet"  # as train.yaml, which names other codes
CHECKPOINT = RUN / "train" / "checkpoint"
PORT = 8000  # http_options in serve_config.yaml


def main() -> int:
    started = time.monotonic()
    if not port_is_free(PORT):  # before the last run's report is deleted
        print(f"demo: error: port {PORT} is in use; stop what listens there", file=sys.stderr)
        return 1
    if RUN.exists():
        print(f"replacing {RUN}")
        shutil.rmtree(RUN)
    (RUN / "logs").mkdir(parents=True)
    seconds: dict[str, float] = {}
    try:
        with ExitStack() as running:
            with _step("ray head", seconds):
                environment = running.enter_context(ray_head())
            with _step("encode", seconds):
                submit("encode", "encode", environment, "--output", str(RUN / "codes"))
            with _step("evaluate before", seconds):
                _evaluate("before", environment, "--untrained-voices", NEW_VOICE)
            with _step("train", seconds):
                data = ["--data", str(RUN / "codes"), "--data", OLD_VOICES]
                folders = [*data, "--output", str(RUN / "train")]
                submit("train", "train", environment, *folders, "--precision", _precision())
            with _step("evaluate after", seconds):
                _evaluate("after", environment, "--model", str(CHECKPOINT))
            with _step("serve", seconds):
                url = f"http://127.0.0.1:{PORT}"
                server = start_server(_serve_config(CHECKPOINT), url, environment)
            with server, _step("speak", seconds):
                clips = choose_clips(RUN / "before")
                texts = [(clip.text, clip.voice) for clip in clips]
                requests = speak_all(url, RUN / "wavs", texts)
        with _step("report", seconds):
            before, after = read_results(RUN / "before"), read_results(RUN / "after")
            images = write_report(RUN, before, after, clips, requests, seconds)
    except StepFailed as error:
        print(f"\ndemo: FAILED: {error}", file=sys.stderr)
        return 1
    print(f"\n{as_text(*comparison(before, after))}")
    print(f"\nwhole demo: {time.monotonic() - started:.0f} s. Open {RUN / 'report.html'}")
    print(f"Spectrograms: {', '.join(map(str, images))}")
    print(f"Speak again: serve run {RUN / 'serve_config.yaml'}, or")
    words = f'"four two seven" --model {CHECKPOINT} --voice {NEW_VOICE} -o out.wav'
    print(f"  sheen speak {words}")
    return 0


@contextmanager
def _step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"\n== {name}", flush=True)
    started = time.monotonic()
    yield
    seconds[name] = time.monotonic() - started
    print(f"   {name}: {seconds[name]:.1f} s", flush=True)


def _evaluate(name: str, environment: dict[str, str], *flags: str) -> None:
    size = ["--per-voice", str(PER_VOICE), "--output", str(RUN / name)]
    submit(name, "evaluate", environment, *size, *flags)


def _precision() -> str:
    """bfloat16 where the CPU computes in it: 1.4 times as fast; emulated, it is slower."""
    has = torch.cpu.get_capabilities()
    return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"


def _serve_config(checkpoint: Path) -> Path:
    """The committed serve config with another checkpoint, as a file of the demo's."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    (application,) = config["applications"]
    application["args"]["model"] = str(checkpoint)
    path = RUN / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
