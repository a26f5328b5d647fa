"""The whole path on this machine: a small model that speaks learns a voice it has never heard.

Run by `make demo`. It starts a local Ray head and submits the jobs: encode the corpus, evaluate the
committed voice, fine-tune it on the corpus, evaluate the result. Then it serves that, sends
concurrent requests with the official `openai` client, prints what changed, and writes
`runs/demo/report.html`. It stops what it started, and fails loudly when any step fails.
"""

import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "english"))

from demo_commands import (
    PORT,
    RUN,
    StepFailed,
    cpu_precision,
    port_is_free,
    ray_head,
    serve_config,
    start_server,
    step,
    submit,
)
from demo_comparison import as_text, choose_clips, comparison, read_results
from demo_report import write_report
from demo_requests import speak_all

CONFIGS = "examples/digits"
HERE = Path(__file__).resolve().parent
CORPUS, HELDOUT = str(HERE / "corpus"), str(HERE / "heldout")
"""Absolute: Ray leaves what git ignores out of its copy of the working directory."""
NEW_VOICE = "kal16"
PER_VOICE = 25
"""Held-out strings that each voice speaks before and after, of 100: enough to see whether a voice
came or went, in time that a demo can spend."""
OLD_VOICES = "examples/digits/old-voices.parquet"  # as train.yaml, which names other codes
CHECKPOINT = RUN / "train" / "checkpoint"


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
            with step("ray head", seconds):
                environment = running.enter_context(ray_head())
            with step("encode", seconds):
                folders = ["--input", CORPUS, "--output", str(RUN / "codes")]
                submit("encode", "encode", CONFIGS, environment, *folders)
            with step("evaluate before", seconds):
                _evaluate("before", environment, "--untrained-voices", NEW_VOICE)
            with step("train", seconds):
                data = ["--data", str(RUN / "codes"), "--data", OLD_VOICES]
                folders = [*data, "--output", str(RUN / "train")]
                folders += ["--precision", cpu_precision()]
                submit("train", "train", CONFIGS, environment, *folders)
            with step("evaluate after", seconds):
                _evaluate("after", environment, "--model", str(CHECKPOINT))
            with step("serve", seconds):
                url = f"http://127.0.0.1:{PORT}"
                server = start_server(serve_config(CHECKPOINT, RUN), url, environment)
            with server, step("speak", seconds):
                clips = choose_clips(RUN / "before")
                texts = [(clip.text, clip.voice) for clip in clips]
                requests = speak_all(url, RUN / "wavs", texts)
        with step("report", seconds):
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


def _evaluate(name: str, environment: dict[str, str], *flags: str) -> None:
    folders = ["--prompts", HELDOUT, "--voice-recordings", CORPUS, "--output", str(RUN / name)]
    size = ["--per-voice", str(PER_VOICE)]
    submit(name, "evaluate", CONFIGS, environment, *folders, *size, *flags)


if __name__ == "__main__":
    sys.exit(main())
