"""The command line, and the engine under it: endings, budgets, refusals. No Ray Serve."""

import json
import queue
import runpy
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import sheen.__main__
from sheen.__main__ import main
from sheen.core.audio import to_pcm16
from sheen.core.codec import WEIGHTS_FILE
from sheen.core.engine import (
    Engine,
    EngineBusy,
    Finished,
    Request,
    Samples,
    Ticket,
    stream,
)
from sheen.core.sampling import Sampling
from sheen.core.voice import Voice, load_voice

WAIT_S = 120
"""Far longer than anything here takes: what a failing engine costs, never a passing one."""

GREEDY = Sampling(temperature=0.0)
"""After a few training steps `<audio_end>` is never the likeliest row: the budget decides."""


class Sink:
    """Collects what a request gets."""

    def __init__(self) -> None:
        self.items: queue.Queue[Samples | Finished] = queue.Queue()

    def __call__(self, item: Samples | Finished) -> None:
        self.items.put(item)

    def wait(self) -> tuple[Samples, Finished]:
        """All samples and the ending. The ending must be the last thing that came."""
        pieces = [np.zeros(0, np.float32)]
        while not isinstance(item := self.items.get(timeout=WAIT_S), Finished):
            pieces.append(item)
        assert self.items.empty()
        return np.concatenate(pieces), item


class Gate(Sink):
    """Holds the engine's thread in its first item until `release` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.release = threading.Event()

    def __call__(self, item: Samples | Finished) -> None:
        self.reached.set()
        assert self.release.wait(WAIT_S)
        super().__call__(item)


def speak(engine: Engine, request: Request) -> tuple[Samples, Finished]:
    sink = Sink()
    engine.submit(request, sink)
    return sink.wait()


def shortened(request: Request, max_frames: int) -> Request:
    return Request(request.prompt, max_frames, request.sampling)


def greedy(voice: Voice, text: str, frames: int, speaker: str = "slt") -> Request:
    return shortened(voice.request(text, speaker, GREEDY, 30.0), frames)


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoint"


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


# python -m sheen


def test_it_writes_what_the_engine_speaks(checkpoint: Path, voice: Voice, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    command = ["four two", "--model", str(checkpoint), "--voice", "slt", "-o", str(path)]
    result = subprocess.run(
        [sys.executable, "-m", "sheen", *command, "--seed", "7", "--max-seconds", "1"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert str(path) in result.stdout
    info = soundfile.info(path)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    assert (info.samplerate, info.channels) == (24_000, 1)

    engine = Engine(voice.model, voice.codec)
    request = voice.request("four two", "slt", Sampling(seed=7), 1.0)
    samples, _ = speak(engine, request)
    engine.close()
    assert len(samples)
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], to_pcm16(samples))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line says when it refuses, after any progress bar: one line."""
    assert main([*arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    start = captured.err.index("python -m sheen: error: ")
    # Ray, which other tests started in this process, prints its actors' lines when it likes.
    lines = captured.err[start:].splitlines(keepends=True)
    message = "".join(line for line in lines if not line.startswith("\x1b[36m("))
    assert message.endswith("\n")
    assert message.count("\n") == 1
    return message


def test_a_refusal_is_the_processs_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["sheen", "four two", "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(sheen.__main__.__file__, run_name="__main__")
    assert exit_info.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("uri", [False, True])
def test_a_missing_model_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, uri: bool
) -> None:
    missing = tmp_path / "nothing"
    location = missing.as_uri() if uri else str(missing)
    assert location in refusal(capsys, "four two", "--model", location)


def test_a_folder_that_is_no_checkpoint_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    message = refusal(capsys, "four two", "--model", str(tmp_path))
    assert str(tmp_path / "sheen.json") in message
    assert "jobs/train.py" in message
    assert "examples/digits/voice" in message


def test_an_unknown_voice_lists_the_known_ones(
    capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    message = refusal(capsys, "four two", "--model", str(checkpoint), "--voice", "nobody")
    assert "nobody" in message
    assert "awb, kal16, rms, slt" in message


@pytest.mark.parametrize("text", ["", " \t\n", "\u2003"])
def test_a_text_without_words_is_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, text: str
) -> None:
    message = refusal(capsys, text, "--model", str(checkpoint), "--voice", "slt")
    assert "the text is empty" in message


def test_an_output_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "missing" / "out.wav")
    arguments = ("four", "--model", str(checkpoint), "--voice", "slt", "--max-seconds", "0.1")
    assert path in refusal(capsys, *arguments, "-o", path)


# Checkpoints that must not be opened


@pytest.mark.parametrize(
    ("key", "value"),
    [("format_version", 2), ("template", "speaker-text-9"), ("normaliser", "none-9")],
)
def test_another_version_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], damaged: Path, key: str, value: object
) -> None:
    path = damaged / "sheen.json"
    info: dict[str, Any] = json.loads(path.read_text("utf-8"))
    assert info[key] != value
    path.write_text(json.dumps({**info, key: value}), "utf-8")
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", "slt")
    assert f"{key} is {value!r}" in message
    assert repr(info[key]) in message
    assert str(path) in message


def test_half_a_record_is_named(capsys: pytest.CaptureFixture[str], damaged: Path) -> None:
    path = damaged / "sheen.json"
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in refusal(capsys, "four two", "--model", str(damaged), "--voice", "slt")


def test_another_codec_is_refused(capsys: pytest.CaptureFixture[str], damaged: Path) -> None:
    path = damaged / "codec" / WEIGHTS_FILE
    state = torch.load(path, weights_only=True)
    name = next(iter(state))
    state[name] = state[name] + 1.0
    torch.save(state, path)
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", "slt")
    assert str(damaged / "codec") in message
    assert "weights" in message


def test_a_checkpoint_opens_from_a_uri(checkpoint: Path, voice: Voice) -> None:
    opened = load_voice(checkpoint.as_uri())
    assert opened.info == voice.info
    assert torch.equal(opened.model.head, voice.model.head)


# The engine


@pytest.fixture
def engine(voice: Voice) -> Iterator[Engine]:
    engine = Engine(voice.model, voice.codec, max_batch=1)
    yield engine
    engine.close()
    assert not engine.alive()


@pytest.mark.parametrize("frames", [1, 5])
def test_the_budget_ends_a_request_on_the_frame(voice: Voice, engine: Engine, frames: int) -> None:
    samples, finished = speak(engine, greedy(voice, "four two", frames))
    assert finished == Finished("length", frames)
    assert samples.shape == (frames * voice.codec.frame_samples,)
    assert samples.dtype == np.float32


def test_the_model_may_be_filled_to_its_last_position_and_no_further(
    voice: Voice, engine: Engine
) -> None:
    room = voice.model.max_positions - voice.model.layout.tokens_per_frame
    start = voice.model.layout.start_id
    full = Request([65] * (room - 1) + [start], 1, GREEDY)
    _, finished = speak(engine, full)
    assert finished == Finished("length", 1)
    for request in (Request([65] * room + [start], 1, GREEDY), shortened(full, 2)):
        with pytest.raises(ValueError, match=f"{voice.model.max_positions} positions"):
            engine.submit(request, Sink())


def test_a_request_for_no_frames_is_refused(voice: Voice, engine: Engine) -> None:
    with pytest.raises(ValueError, match="0 frames"):
        engine.submit(greedy(voice, "four two", 0), Sink())


def test_a_text_may_fill_the_model_and_then_leaves_less_audio(voice: Voice) -> None:
    positions, per_frame = voice.model.max_positions, voice.model.layout.tokens_per_frame
    request = voice.request("a" * (positions - 50), "slt", GREEDY, 30.0)
    room = positions - len(request.prompt)
    assert request.max_frames == room // per_frame
    with pytest.raises(ValueError, match="shorter text"):
        voice.request("a" * positions, "slt", GREEDY, 30.0)


def test_cancelling_stops_a_request_that_runs(voice: Voice, engine: Engine) -> None:
    ticket: list[Ticket] = []
    sink = Sink()
    gate = threading.Event()

    def cancel_at_first(item: Samples | Finished) -> None:
        assert gate.wait(WAIT_S)  # submit has returned
        ticket[0].cancel()
        sink(item)

    ticket.append(engine.submit(greedy(voice, "four two", 250), cancel_at_first))
    gate.set()
    samples, finished = sink.wait()
    assert finished.reason == "cancelled"
    assert len(samples)
    assert finished.frames < 50
    assert speak(engine, greedy(voice, "four two", 1))[1].reason == "length"
    assert sink.items.empty()


def test_cancelling_a_request_that_waits(voice: Voice, engine: Engine) -> None:
    running, waiting = Gate(), Sink()
    engine.submit(greedy(voice, "four two", 1), running)
    assert running.reached.wait(WAIT_S)
    engine.submit(greedy(voice, "four two", 250), waiting).cancel()
    running.release.set()
    samples, finished = waiting.wait()
    assert finished == Finished("cancelled", 0)
    assert len(samples) == 0
    assert running.wait()[1].reason == "length"


def test_cancelling_one_of_a_batch_leaves_the_other_alone(voice: Voice) -> None:
    kept, left = greedy(voice, "four two", 6), greedy(voice, "nine one one", 250, "rms")
    # A wait without end, so that the two are one batch whatever the machine does.
    engine = Engine(voice.model, voice.codec, max_batch=2, batch_wait_s=WAIT_S)
    alone = Engine(voice.model, voice.codec, max_batch=1)
    sinks = Sink(), Sink()
    engine.submit(left, sinks[0]).cancel()
    engine.submit(kept, sinks[1])
    assert sinks[0].wait()[1] == Finished("cancelled", 0)
    samples, finished = sinks[1].wait()
    expected, ending = speak(alone, kept)
    assert finished == ending
    np.testing.assert_array_equal(to_pcm16(samples), to_pcm16(expected))
    engine.close()
    alone.close()


def test_leaving_the_iterator_cancels(voice: Voice) -> None:
    seen, left = Sink(), threading.Event()

    class Watched(Engine):
        def submit(self, request: Request, sink: Sink) -> Ticket:
            def relay(item: Samples | Finished) -> None:
                sink(item)
                seen(item)
                assert left.wait(WAIT_S)

            return super().submit(request, relay)

    engine = Watched(voice.model, voice.codec, max_batch=1)
    items = stream(engine, greedy(voice, "four two", 250))
    assert len(next(items)) == voice.codec.frame_samples
    items.close()
    left.set()
    assert seen.wait()[1].reason == "cancelled"
    engine.close()


def test_a_failure_reaches_the_sink_and_the_next_request_is_served(
    voice: Voice, engine: Engine
) -> None:
    good = greedy(voice, "four two", 2)
    expected, _ = speak(engine, good)
    bad = Request([10**6, voice.model.layout.start_id], 2, GREEDY)
    samples, finished = speak(engine, bad)
    assert (finished.reason, finished.frames, len(samples)) == ("error", 0, 0)
    assert finished.error
    with pytest.raises(RuntimeError) as raised:
        list(stream(engine, bad))
    assert finished.error in str(raised.value)
    assert engine.alive()
    np.testing.assert_array_equal(speak(engine, good)[0], expected)


def test_beyond_what_may_wait_a_request_is_refused_and_the_others_complete(voice: Voice) -> None:
    engine = Engine(voice.model, voice.codec, max_batch=1, max_queue=2)
    requests = [greedy(voice, text, 2) for text in ("one", "two two", "six")]
    expected = [speak(engine, request)[0] for request in requests]
    running, waiting = Gate(), (Sink(), Sink())
    engine.submit(requests[0], running)
    assert running.reached.wait(WAIT_S)
    for request, sink in zip(requests[1:], waiting, strict=True):
        engine.submit(request, sink)
    refused = Sink()
    with pytest.raises(EngineBusy, match="2 requests") as busy:
        engine.submit(requests[0], refused)
    assert busy.value.waiting == 2
    running.release.set()
    for sink, samples in zip((running, *waiting), expected, strict=True):
        np.testing.assert_array_equal(sink.wait()[0], samples)
    # The place of a request that was served is free again.
    assert speak(engine, requests[0])[1].reason == "length"
    assert refused.items.empty()
    engine.close()


@pytest.mark.parametrize("max_batch", [1, 2])
def test_closing_finishes_what_is_queued(voice: Voice, max_batch: int) -> None:
    engine = Engine(voice.model, voice.codec, max_batch=max_batch, batch_wait_s=WAIT_S)
    sinks = Sink(), Sink(), Sink()
    for frames, sink in enumerate(sinks, start=1):
        engine.submit(greedy(voice, "four two", frames), sink)
    engine.close()
    assert not engine.alive()
    for frames, sink in enumerate(sinks, start=1):
        samples, finished = sink.wait()
        assert finished == Finished("length", frames)
        assert len(samples) == frames * voice.codec.frame_samples
