"""What preparing costs beside its ASR, and its memory over a long recording.

    python benchmarks/preparing.py --hours 10

Joins the recordings of the English demo, with pauses, to a file of so many hours, cuts it, and
reads, measures and embeds some of its segments, all in this process on one thread. Prints CPU
seconds per second of audio, and the growth of the process's memory while it cuts. The whole job, on
Ray, is `preparing_job.py`'s.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from sheen.audio.io import decode_audio, resampled
from sheen.data.clips import ClipReader
from sheen.prepare.cutting.analysis import WHOLE
from sheen.prepare.cutting.cut import CutSettings
from sheen.prepare.cutting.vad import RATE
from sheen.prepare.rejections.quality import between, measure
from sheen.prepare.speakers.embedding import embed_parts
from sheen.prepare.stages.cut import cut_source
from sheen.scoring.speaker_id import SpeakerEncoder

DEMO = Path(__file__).resolve().parents[1] / "examples" / "english" / "demo"
FILE_RATE = 24_000
SAMPLED = 100
"""Segments that are read and embedded."""


def make_recording(path: Path, hours: float, seed: int = 0) -> float:
    """Write it; returns its seconds."""
    rng = np.random.default_rng(seed)
    clips = [decode_audio(clip.read_bytes(), FILE_RATE) for clip in sorted(DEMO.rglob("*.opus"))]
    written = 0
    with soundfile.SoundFile(path, "w", FILE_RATE, 1, format=path.suffix[1:].upper()) as file:
        while written < hours * 3600 * FILE_RATE:
            pause = 1e-4 * rng.standard_normal(round(rng.uniform(0.3, 1.2) * FILE_RATE))
            for part in (pause.astype(np.float32), clips[rng.integers(len(clips))]):
                file.write(part)
                written += len(part)
    return written / FILE_RATE


def memory() -> float:
    """MB that this process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--format", choices=["flac", "mp3", "ogg"], default="mp3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"long.{args.format}"
        seconds = make_recording(path, min(args.hours, 0.05))
        cut_source(str(path), CutSettings())  # what is loaded once is not of the recording
        seconds = make_recording(path, args.hours)
        before, started = memory(), time.process_time()
        segments = cut_source(str(path), CutSettings())["segments"]
        took = time.process_time() - started
        assert isinstance(segments, list)
        speech = sum(segment["end"] - segment["start"] for segment in segments)
        print(f"{seconds / 3600:.1f} h of {args.format}: {len(segments)} segments, {speech:.0f} s")
        print(f"cutting: {took / seconds:.5f} CPU s per s, {seconds / took:.0f} x realtime")
        print(f"memory: {before:.0f} MB before, {memory() - before:.0f} MB more at most")
        chosen = segments[:: max(1, len(segments) // SAMPLED)]
        audio = sum(segment["end"] - segment["start"] for segment in chosen)
        reader, read = ClipReader(), []
        started = time.process_time()
        for segment in chosen:
            samples, rate = reader.read({**WHOLE, "audio": str(path), **segment})
            read.append((samples, rate, resampled(samples, rate, RATE)))
        reading = (time.process_time() - started) / audio
        started = time.process_time()
        for (samples, rate, _), segment in zip(read, chosen, strict=True):
            pauses = between(samples, rate, segment["regions"])
            measure(samples, rate, segment["regions"], pauses)
        measuring = (time.process_time() - started) / audio
        print(
            f"reading 1 of {len(segments) // len(chosen)} segments: {reading:.5f} CPU s per s, "
            f"and with the measures of their sound {reading + measuring:.5f}"
        )
        encoder = SpeakerEncoder()
        started = time.process_time()
        for _, _, clip in read:
            embed_parts(encoder, clip, RATE)
        embedding = (time.process_time() - started) / audio
        print(
            f"embedding: {embedding:.5f} CPU s per s, {embedding * audio / len(read):.3f} a segment"
        )
        whole = took / seconds + reading + measuring + embedding
        print(f"together: {whole:.5f} CPU s per s")


if __name__ == "__main__":
    main()
