"""What the encode job is compared with: one process running SNAC as published, and bare processes.

The baseline is one process, one clip at a time, as users of snac write it: soundfile, FFT
resampling, `SNAC.encode` as published (weight norm computed on every call), torch's default number
of threads, Parquet at the end. Its seconds leave out loading the model and the first clip. Run it
without OMP_NUM_THREADS and MALLOC_* in the environment, as `encoding.py` does.

`--bare N` is the other end: N processes that run nothing but Sheen's codec, on clips decoded and
resampled beforehand, one torch thread each, with the job's malloc environment. They start together
after a warm-up; the rate is all audio over the time from the start to the last one's end.

`--agree N` counts the codes that Sheen's codec and `SNAC.encode` give differently for N clips.
Each prints one line of JSON.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
from encoding_corpus import Clip, read_clips
from numpy.typing import NDArray
from snac import SNAC
from torch import Tensor

from sheen.audio.io import decode_audio
from sheen.codec.snac import load_codec
from sheen.data.dataset import CODES_TYPE

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("snac_codes", CODES_TYPE)])


def fft_resample(samples: NDArray[np.float32], count: int) -> Tensor:
    """`scipy.signal.resample(samples, count)`, operation for operation: the project has no scipy.

    By torch's FFT, in single precision as scipy's. Measured on 2 threads, a minute of audio takes
    0.19 s here and 0.15 s by scipy; the codec takes many seconds for it.
    """
    n = len(samples)
    spectrum = torch.fft.rfft(torch.from_numpy(samples))
    kept = torch.zeros(count // 2 + 1, dtype=spectrum.dtype)
    least = min(n, count)
    kept[: least // 2 + 1] = spectrum[: least // 2 + 1]
    if least % 2 == 0 and n != count:  # the one bin that stands for two
        kept[least // 2] *= 2.0 if count < n else 0.5
    return torch.fft.irfft(kept, count) * (count / n)


def run_baseline(clips: Sequence[Clip], codec: str, output: Path) -> dict[str, Any]:
    model = SNAC.from_pretrained(codec)
    rows: list[dict[str, Any]] = []
    digest = hashlib.sha256()
    heard, started = 0, 0.0
    for clip in clips:
        samples, rate = soundfile.read(clip.path, dtype="float32", always_2d=True)
        mono = samples.mean(axis=1)
        wave = fft_resample(mono, round(len(mono) * model.sampling_rate / rate))
        with torch.inference_mode():
            levels = model.encode(wave[None, None])
        codes = [level[0].numpy().astype(np.int16) for level in levels]
        rows.append({"id": clip.name, "text": clip.text, "snac_codes": codes})
        digest.update(b"".join(level.tobytes() for level in codes))
        if len(rows) == 1:
            started = time.perf_counter()
        else:
            heard += len(wave)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), output)
    return {
        "audio_seconds": heard / model.sampling_rate,
        "seconds": time.perf_counter() - started,
        "codes_sha256": digest.hexdigest(),
        "threads": torch.get_num_threads(),
    }


def deal(clips: Sequence[Clip], players: int) -> list[list[Clip]]:
    """Clips in `players` shares of like lengths: none waits for another at the end."""
    lengths = {clip: soundfile.info(clip.path).duration for clip in clips}
    shares: list[list[Clip]] = [[] for _ in range(players)]
    totals = [0.0] * players
    for clip in sorted(clips, key=lambda clip: -lengths[clip]):
        least = totals.index(min(totals))
        shares[least].append(clip)
        totals[least] += lengths[clip]
    return shares


def run_bare(corpus: Path, codec: str, processes: int) -> dict[str, Any]:
    from sheen.runs.cluster import WORKER_ENV  # imports Ray, which the processes do without

    environment = os.environ | WORKER_ENV | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, "--corpus", str(corpus), "--codec", codec]
    with ExitStack() as running:
        children = [
            running.enter_context(
                subprocess.Popen(
                    [*words, "--bare", str(processes), "--share", str(place)],
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for place in range(processes)
        ]
        # The end of their input ends children that still wait for it, whatever went wrong here.
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise RuntimeError("a bare process ended before it was ready; see its error above")
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        figures = []
        for child in children:
            assert child.stdout is not None
            line = child.stdout.readline()
            if not line:
                raise RuntimeError("a bare process ended without figures; see its error above")
            figures.append(json.loads(line))
    started = min(figure["started"] for figure in figures)
    ends = [figure["ended"] - started for figure in figures]
    return {
        "audio_seconds": sum(figure["audio_seconds"] for figure in figures),
        "seconds": max(ends),
        "ends": ends,
    }


def run_share(clips: Sequence[Clip], codec_folder: str) -> None:
    """One of the bare processes: says that it is ready, waits for its turn, prints its figures."""
    torch.set_num_threads(1)
    codec = load_codec(codec_folder)
    waves = [
        torch.from_numpy(decode_audio(clip.path.read_bytes(), codec.sample_rate)) for clip in clips
    ]
    codec.encode(waves[:1])  # the longest: what the heap grows to
    print("ready", flush=True)
    if sys.stdin.readline() != "go\n":
        return
    started = time.monotonic()  # one clock for all processes
    for wave in waves:
        codec.encode([wave])
    figures = {
        "audio_seconds": sum(map(len, waves)) / codec.sample_rate,
        "started": started,
        "ended": time.monotonic(),
    }
    print(json.dumps(figures), flush=True)


def run_agreement(clips: Sequence[Clip], codec_folder: str, count: int) -> dict[str, Any]:
    """Codes of Sheen's codec and of `SNAC.encode` for `count` clips from all over the corpus."""
    codec, published = load_codec(codec_folder), SNAC.from_pretrained(codec_folder)
    chosen = clips[:: max(1, len(clips) // count)][:count]
    waves = [
        torch.from_numpy(decode_audio(clip.path.read_bytes(), codec.sample_rate)) for clip in chosen
    ]
    codes = differing = 0
    for wave, ours in zip(waves, codec.encode(waves), strict=True):
        with torch.inference_mode():
            theirs = published.encode(wave[None, None])
        for level, reference in zip(ours, theirs, strict=True):
            codes += level.size
            differing += int((level != reference[0].numpy()).sum())
    return {"clips": len(chosen), "codes": codes, "differing": differing}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="made by encoding_corpus.py")
    parser.add_argument("--codec", required=True, help="folder of a SNAC codec")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--output", type=Path, help="Parquet file of the baseline's codes")
    mode.add_argument("--bare", type=int, metavar="N", help="N bare processes instead")
    mode.add_argument("--agree", type=int, metavar="N", help="compare codes of N clips instead")
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)  # one of the bare processes
    options = parser.parse_args(argv)
    clips = read_clips(options.corpus)
    if options.share is not None:
        run_share(deal(clips, options.bare)[options.share], options.codec)
        return 0
    if options.bare:
        figures = run_bare(options.corpus, options.codec, options.bare)
    elif options.agree:
        figures = run_agreement(clips, options.codec, options.agree)
    elif options.output:
        figures = run_baseline(clips, options.codec, options.output)
    else:
        parser.error("give one of --output, --bare and --agree")
    print(json.dumps(figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
