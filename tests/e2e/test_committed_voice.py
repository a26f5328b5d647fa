"""The committed voice speaks: strings that no training has heard, in the three voices it knows.

10 held-out strings of each voice, from the shortest to the longest, with fixed seeds and the
sampling that serving has by default; pocketsphinx writes down what it hears. The bound on its size
is on the model and the tokenizer: `codec/` in the checkpoint is a copy of examples/digits/codec,
which a checkpoint of a codec from a folder always carries.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from helpers.example import DIGITS, ROOT, load_script
from sheen.codec.info import CODEC_FOLDER, describe_codec
from sheen.engine.engine import Engine
from sheen.engine.longform import Synthesized, synthesize_all
from sheen.engine.sampler import Sampling
from sheen.engine.types import SynthesisParams
from sheen.engine.voice import load_voice
from sheen.lm import checkpoint
from sheen.scoring.asr import Pocketsphinx
from sheen.scoring.wer import error_rate
from sheen.serve.config import checkpoint_location

COMMITTED = DIGITS / "voice"
TRAINED = ("slt", "rms", "awb")
PER_VOICE = 10
LONGEST_S = 6.0
"""Twice the longest recording; what is cut here has not ended with EOS."""
BATCH = 16

make_corpus = load_script(DIGITS / "make_corpus.py")


@dataclass(frozen=True)
class Spoken:
    """`waveform` `[n]` at `rate` Hz."""

    text: str
    waveform: NDArray[np.float32]
    rate: int
    stopped: bool


@pytest.fixture(scope="module")
def spoken() -> list[Spoken]:
    voice = load_voice(str(COMMITTED))
    heldout = (DIGITS / "heldout.txt").read_text("utf-8").splitlines()
    own = {name: make_corpus.heldout_rows(heldout, [name], PER_VOICE) for name in TRAINED}
    texts: list[tuple[str, SynthesisParams]] = []
    for place in range(PER_VOICE):
        for name, rows in own.items():
            params = SynthesisParams(name, Sampling(seed=len(texts)), LONGEST_S)
            texts.append((rows[place][1], params))
    engine = Engine(voice.model, voice.codec, slots=BATCH, max_seq_len=voice.max_seq_len(LONGEST_S))
    results = synthesize_all(engine, voice, texts)
    engine.close()
    spoken = [result for result in results if isinstance(result, Synthesized)]
    assert len(spoken) == len(texts)
    rate = voice.codec.sample_rate
    return [
        Spoken(text, result.samples, rate, result.finish_reason == "stop")
        for (text, _), result in zip(texts, spoken, strict=True)
    ]


def test_it_is_understood(spoken: list[Spoken]) -> None:
    asr = Pocketsphinx(DIGITS / "digits.gram")
    heard = asr.transcribe([one.waveform for one in spoken], spoken[0].rate)
    errors = error_rate("word", [one.text for one in spoken], heard)
    assert errors.utterances == 30
    assert errors.rate <= 0.15


def test_it_stops_by_itself(spoken: list[Spoken]) -> None:
    assert sum(one.stopped for one in spoken) >= 29


def test_it_is_small() -> None:
    files = [path for path in COMMITTED.rglob("*") if path.is_file()]
    assert COMMITTED / "model.safetensors" in files
    own = [path for path in files if path.parent != COMMITTED / CODEC_FOLDER]
    assert sum(path.stat().st_size for path in own) <= 20_000_000


def test_it_is_what_a_fresh_clone_serves() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    (application,) = config["applications"]
    assert Path(checkpoint_location(application["args"]["model"])).samefile(COMMITTED)


def test_the_demo_can_teach_it_a_voice_that_it_does_not_know() -> None:
    info = checkpoint.read_info(COMMITTED)
    assert info.voices == sorted(TRAINED)
    # What the demo encodes with: a checkpoint refuses codes of any other codec.
    assert info.codec.sha256 == describe_codec(str(DIGITS / "codec")).sha256
