"""The steps of a text, from the flags of encoding to whoever speaks."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from helpers.example import VOICE
from helpers.voices import make_voice
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec
from sheen.data.corpus import MANIFEST_SCHEMA
from sheen.encode.config import RecordingLimits
from sheen.encode.stages import DecodeSettings, decode_rows
from sheen.engine.chunks import ChunkStream
from sheen.engine.engine import Engine
from sheen.engine.longform import inline
from sheen.engine.synthesis import Synthesized, synthesize_all
from sheen.engine.types import SynthesisParams
from sheen.engine.voice import Voice, load_voice
from sheen.evaluate.output import PROMPT_SCHEMA
from sheen.evaluate.speak_stage import SpeakWorker
from sheen.lm.checkpoint import INFO_FILE, read_info, write_info
from sheen.text import normalization, phonemes
from sheen.text.segmentation import split_sentences
from sheen.text.steps import NfcSpaceStep, NormalizerStep, TextPipeline, check_steps

SILENT_CODES = [[1] * 12, [1] * 24, [1] * 48]  # a second of what a codec says
WRITTEN = "It is 10:30. I will read it to Dr. Doe, and to the owner of the apple tree."


@pytest.fixture(scope="module")
def steps() -> tuple[NormalizerStep, ...]:
    return normalization.describe("en"), phonemes.describe("en"), NfcSpaceStep()


@pytest.fixture(scope="module")
def voice(codec: Codec, steps: tuple[NormalizerStep, ...]) -> Voice:
    """Of a model that was taught phonemes."""
    made = make_voice(codec, {})
    return replace(made, info=made.info.model_copy(update={"normalizer": steps}))


@pytest.fixture
def engine(voice: Voice) -> Iterator[Engine]:
    engine = Engine(voice.model, voice.codec, slots=2, max_seq_len=voice.max_seq_len(0.4))
    yield engine
    engine.close()


@pytest.fixture
def saved(checkpoint: Path, tmp_path: Path, steps: tuple[NormalizerStep, ...]) -> Path:
    """A checkpoint with these steps."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    info = read_info(folder).model_copy(update={"normalizer": steps})
    write_info(folder, info)
    return folder


def edit_step(folder: Path, place: int, **keys: str) -> None:
    path = folder / INFO_FILE
    written = json.loads(path.read_text("utf-8"))
    written["normalizer"][place] |= keys
    path.write_text(json.dumps(written), "utf-8")


def test_a_checkpoint_says_how_its_texts_become_phonemes(
    saved: Path, steps: tuple[NormalizerStep, ...]
) -> None:
    assert read_info(saved).normalizer == steps
    assert load_voice(str(saved)).model_input("It's 10:30!") == "ˌɪts tˈɛn θˈɜɹTi!"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "syllables"}, r"name is 'syllables', this Sheen knows .*'phonemes'"),
        ({"library": "other-g2p"}, r"library is 'other-g2p', this Sheen knows 'hibari-tts'"),
        ({"alphabet": "ipa-9"}, r"alphabet is 'ipa-9', this Sheen knows 'misaki-us-1'"),
        ({"voicing": "x"}, r"voicing is 'x', and this Sheen knows no such key"),
    ],
)
def test_a_step_that_is_not_known_is_refused_by_name(
    saved: Path, keys: dict[str, str], message: str
) -> None:
    edit_step(saved, 1, **keys)
    with pytest.raises(ValueError, match=rf"sheen\.json: normalizer.*{message}"):
        read_info(saved)


def test_a_version_that_is_not_installed_is_refused_by_name(saved: Path) -> None:
    edit_step(saved, 1, version="9.9")
    with pytest.raises(ValueError, match=r"checkpoint .*: phonemes: .* hibari-tts 9\.9, but "):
        load_voice(str(saved))


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([1, 2], "needs text normalization in the same"),
        ([1, 0], "expected each at most once, in the order nemo_text_processing, phonemes"),
        ([0, 1, 1], "expected each at most once"),
        ([2, 0], "in the order"),
    ],
)
def test_steps_in_another_order_are_refused(saved: Path, places: list[int], message: str) -> None:
    path = saved / INFO_FILE
    written = json.loads(path.read_text("utf-8"))
    written["normalizer"] = [written["normalizer"][place] for place in places]
    path.write_text(json.dumps(written), "utf-8")
    with pytest.raises(ValueError, match=rf"sheen\.json: normalizer: .*{message}"):
        read_info(saved)


def test_phonemes_of_words_in_another_language_are_refused(saved: Path) -> None:
    edit_step(saved, 0, language="de")
    with pytest.raises(ValueError, match="in the same language"):
        read_info(saved)


def test_texts_as_they_are_need_no_package() -> None:
    check_steps((NfcSpaceStep(),))
    plain = TextPipeline((NfcSpaceStep(),))
    assert plain(" at  10:30\n") == "at 10:30"
    assert plain.model_input(plain.words("...")) == "..."


@pytest.mark.parametrize("text", ["", " \n", "...", "--- !", "你好。"])
def test_what_has_no_sound_is_empty(steps: tuple[NormalizerStep, ...], text: str) -> None:
    assert TextPipeline(steps)(text) == ""


def test_a_text_is_read_as_its_sentences_are(voice: Voice) -> None:
    """Serving reads sentence by sentence, encoding a whole text."""
    sentences = split_sentences(WRITTEN, "en")
    assert len(sentences) == 2
    assert voice.pipeline(WRITTEN) == " ".join(map(voice.model_input, sentences))


@pytest.mark.parametrize("phonemes", [False, True])
def test_tags_pass_every_step(steps: tuple[NormalizerStep, ...], phonemes: bool) -> None:
    text = "It's 10:30, <laugh> isn't it? Ha<sigh>! <2 <cough>"
    pipeline = TextPipeline(steps if phonemes else steps[:1], ("<laugh>", "<sigh>"))
    read = pipeline(text)
    assert [read.count(tag) for tag in ("<laugh>", "<sigh>")] == [1, 1]
    assert ", <laugh> " in read
    if not phonemes:
        assert read.startswith("It's ten thirty, <laugh> isn't it? Ha<sigh>!")
    sentences = split_sentences(text, "en")
    assert read == " ".join(
        pipeline.model_input(pipeline.words(sentence)) for sentence in sentences
    )
    assert pipeline.expected_transcript("Ha <laugh> ha<sigh>.") == "Ha ha ."


def test_encoding_keeps_tags(steps: tuple[NormalizerStep, ...]) -> None:
    row = dict.fromkeys(MANIFEST_SCHEMA.names) | {"key": 0, "id": "a", "source": "line 1"}
    row |= {"text": "5 <laugh> 6", "snac_codes": SILENT_CODES}
    table = pa.Table.from_pylist([row], schema=MANIFEST_SCHEMA)
    layout = TokenLayout(0, 4096, (4, 2, 1))
    settings = DecodeSettings(
        24_000, RecordingLimits(), layout, 2048 / 24_000, None, None, steps[:1]
    )
    [read] = decode_rows(table, replace(settings, tags=("<laugh>",))).to_pylist()
    assert (read["text"], read["reason"]) == ("five <laugh> six", None)


def test_encoding_writes_phonemes_and_rejects_what_has_none(
    steps: tuple[NormalizerStep, ...],
) -> None:
    rows: list[dict[str, Any]] = [
        dict.fromkeys(MANIFEST_SCHEMA.names)
        | {"key": key, "id": "a", "text": text, "source": "line 1", "snac_codes": SILENT_CODES}
        for key, text in enumerate(["It's 10:30!", "你好"])
    ]
    table = pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)
    layout = TokenLayout(0, 4096, (4, 2, 1))
    settings = DecodeSettings(24_000, RecordingLimits(), layout, 2048 / 24_000, normalizer=steps)
    spoken, silent = decode_rows(table, settings).to_pylist()
    assert (spoken["text"], spoken["reason"]) == ("ˌɪts tˈɛn θˈɜɹTi!", None)
    assert (silent["text"], silent["reason"]) == ("你好", "no text")


@pytest.mark.parametrize("limit", [12, 40, 200])
def test_chunks_are_cut_between_words_and_counted_in_phonemes(voice: Voice, limit: int) -> None:
    """As the longest text that the model was taught is counted."""
    chunks = ChunkStream(inline(voice.model_input), limit)
    chunks.feed(split_sentences(WRITTEN, "en"))
    chunks.close()

    async def read() -> list[str]:
        found = []
        while (chunk := await chunks.next()) is not None:
            found.append(chunk)
        return found

    found = asyncio.run(read())
    assert all(len(chunk) <= limit for chunk in found)
    assert " ".join(found) == voice.pipeline(WRITTEN)


@pytest.mark.slow
def test_an_evaluation_keeps_the_words_and_expects_the_phonemes_to_take_their_time(
    saved: Path,
) -> None:
    worker = SpeakWorker(str(saved), "cpu", [], {}, seed=0, max_seconds=0.4, slots=1)
    row = {"key": 0, "id": "a", "text": "It's 10:30!", "speaker": VOICE}
    (spoken,) = worker.speak(pa.Table.from_pylist([row], schema=PROMPT_SCHEMA)).to_pylist()
    assert spoken["text"] == "It's ten thirty!"
    voice = load_voice(str(saved))
    assert spoken["expected_seconds"] == voice.expected_seconds("ˌɪts tˈɛn θˈɜɹTi!", VOICE)
    assert spoken["expected_seconds"] != voice.expected_seconds("It's ten thirty!", VOICE)


def test_a_transcript_is_compared_with_the_words(voice: Voice, engine: Engine) -> None:
    params = SynthesisParams(chunk_seconds=0.4)
    [result] = synthesize_all(engine, voice, [("It's 10:30!", params)])
    assert isinstance(result, Synthesized)
    assert result.text == "It's ten thirty!"
    assert result.model_input == "ˌɪts tˈɛn θˈɜɹTi!"
