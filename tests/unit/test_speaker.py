"""The Python API: `sheen.load`, Speaker and Audio, on the English voice."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sheen
from helpers.example import CHECKPOINT, VOICE, VOICES
from helpers.readers import check_speech
from helpers.speaking import silences
from sheen.speaker import Audio, Speaker

TEXT = "Good morning, and welcome."
SAMPLING = ["temperature", "top_k", "top_p", "repetition_penalty", "repetition_window", "seed"]
KEYWORDS = ["instructions", "speed", *SAMPLING, "lexicon", "ssml"]


@pytest.fixture(scope="module")
def speaker() -> Iterator[Speaker]:
    with sheen.load(str(CHECKPOINT), device="cpu") as opened:
        yield opened


@pytest.fixture(scope="module")
def short(checkpoint: Path) -> Iterator[Speaker]:
    """Of a model that makes noise to the end of a small budget."""
    with sheen.load(str(checkpoint), device="cpu", max_seconds=0.4) as opened:
        yield opened


@pytest.fixture(scope="module")
def audio(speaker: Speaker) -> Audio:
    return speaker.synthesize(TEXT, voice=VOICE)


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def test_the_public_surface_is_what_other_code_may_rely_on() -> None:
    assert sorted(sheen.__all__) == ["Audio", "Reference", "Speaker", "__version__", "load"]
    for name in sheen.__all__:
        assert getattr(sheen, name)
    arguments = list(inspect.signature(sheen.load).parameters)
    assert arguments == ["model", "device", "dtype", "max_seconds", "form", "codec", "info"]
    properties = {"sample_rate", "tags", "voices"}
    assert public(sheen.Speaker) == {"close", "reference", "stream", "synthesize", *properties}
    for method in (Speaker.synthesize, Speaker.stream):
        parameters = list(inspect.signature(method).parameters)
        assert parameters == ["self", "text", "voice", "reference", *KEYWORDS]
    reference = list(inspect.signature(Speaker.reference).parameters)
    assert reference == ["self", "audio", "text", "form"]
    assert public(sheen.Audio) == {"save", "seconds"}
    fields = list(inspect.signature(sheen.Audio).parameters)
    assert fields == ["samples", "sample_rate", "finish_reason"]
    with pytest.raises(AttributeError, match="Voice"):
        getattr(sheen, "Voice")  # noqa: B009 - the name is not there, which mypy knows


@pytest.mark.slow
def test_a_pause_is_exact_in_streams_too_and_a_wrong_one_is_refused_at_once(
    short: Speaker,
) -> None:
    text = "Yes. [pause:1.5s] No."
    whole = short.synthesize(text, VOICE).samples
    assert max(silences(whole)) == 36_000
    streamed = np.concatenate(list(short.stream(text, VOICE)))
    np.testing.assert_array_equal(streamed, whole)
    with pytest.raises(ValueError, match=r"text: \[pause:1h\]: expected seconds"):
        short.stream("Yes. [pause:1h] No.", VOICE)


@pytest.mark.slow
def test_a_document_is_spoken_as_its_text_with_its_pauses_tempo_and_voices(
    short: Speaker,
) -> None:
    def spoken(text: str, **settings: Any) -> NDArray[np.float32]:
        return short.synthesize(text, VOICE, **settings).samples

    same = [
        ('<speak>four <break time="1.5s"/> two</speak>', "four [pause:1.5s] two", 1.0),
        ('<speak>four\n<sub alias="two">2</sub>\n</speak>', "four two", 1.0),
        ('<speak><prosody rate="200%">four two</prosody></speak>', "four two", 2.0),
    ]
    for document, text, speed in same:
        np.testing.assert_array_equal(spoken(document, ssml=True), spoken(text, speed=speed))
    known = ", ".join(sorted(VOICES))
    with pytest.raises(ValueError, match=f'text: <voice name="nobody">: this model has: {known}'):
        short.stream('<speak><voice name="nobody">two</voice></speak>', VOICE, ssml=True)


@pytest.mark.slow
def test_a_lexicon_says_what_is_spoken(speaker: Speaker) -> None:
    spoken = speaker.synthesize("vier two", VOICE, lexicon={"vier": "four"}).samples
    np.testing.assert_array_equal(spoken, speaker.synthesize("four two", VOICE).samples)
    sounds = speaker.synthesize("vier two", VOICE, lexicon={"vier": "/fˈɔɹ/"}).samples
    np.testing.assert_array_equal(sounds, spoken)


def test_a_text_is_spoken_until_the_model_ends_it(speaker: Speaker, audio: Audio) -> None:
    assert speaker.voices[0] == VOICE
    assert sorted(speaker.voices) == sorted(VOICES)
    assert audio.sample_rate == speaker.sample_rate == 24_000
    assert audio.samples.dtype == np.float32
    assert audio.samples.ndim == 1
    assert audio.finish_reason == "stop"
    assert 0.5 < audio.seconds < 4
    assert np.abs(audio.samples).max() > 0.05


def test_streamed_chunks_together_are_the_whole(speaker: Speaker, audio: Audio) -> None:
    chunks = list(speaker.stream(TEXT, voice=VOICE))
    assert len(chunks) > 1
    np.testing.assert_array_equal(np.concatenate(chunks), audio.samples)


@pytest.mark.slow
def test_a_speaker_goes_on_after_a_stream_that_was_left(short: Speaker) -> None:
    before = short.synthesize("Yes.", voice=VOICE)
    for _ in short.stream("They measured the room twice before they left.", voice=VOICE):
        break
    again = short.synthesize("Yes.", voice=VOICE)
    np.testing.assert_array_equal(again.samples, before.samples)


@pytest.mark.slow
def test_the_seed_decides_which_rendition_is_spoken(short: Speaker) -> None:
    one, same, other = (short.synthesize("Yes.", VOICE, seed=seed).samples for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.slow
def test_twice_the_speed_takes_half_as_long(short: Speaker) -> None:
    plain, fast = (short.synthesize("Yes.", VOICE, speed=speed).samples for speed in (1.0, 2.0))
    assert len(fast) == round(len(plain) / 2)


@pytest.mark.slow
def test_a_text_of_several_chunks_is_spoken_to_its_end(speaker: Speaker, audio: Audio) -> None:
    long = speaker.synthesize(f"{TEXT} {TEXT}", VOICE)
    assert long.finish_reason == "stop"
    assert long.seconds > 1.5 * audio.seconds


def test_a_text_without_a_word_is_a_moment_of_silence(speaker: Speaker) -> None:
    silence = speaker.synthesize("😀", VOICE)
    assert silence.seconds == 0.2
    assert not silence.samples.any()
    assert silence.finish_reason == "stop"


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "opus", "aac", "pcm"])
def test_a_file_has_the_format_of_its_ending(audio: Audio, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"speech.{ending}"
    audio.save(path)
    check_speech(ending, path.read_bytes(), len(audio.samples), True, tmp_path)


def test_another_ending_is_refused_and_the_known_ones_named(audio: Audio, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"speech\.txt: .*\.mp3, \.opus"):
        audio.save(tmp_path / "speech.txt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"voice": "nobody"}, f"voice: unknown voice 'nobody'; this model has: {VOICE}"),
        ({"text": " \n"}, "text: the text is empty"),
        ({"text": "caf\udce9"}, r"text: it holds half of a surrogate pair, '\\udce9'.*UTF-8"),
        ({"instructions": "loud"}, "instructions: this model was not trained to follow"),
        ({"speed": 9.0}, "speed is 9.0"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_a_wrong_argument_is_named_before_the_first_chunk(
    speaker: Speaker, arguments: dict[str, object], expected: str
) -> None:
    call: dict[str, object] = {"text": "Yes.", "voice": VOICE} | arguments
    with pytest.raises(ValueError, match=expected):
        speaker.stream(**call)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["nothing", "/nowhere/at/all", "no/voice", "file:///nowhere"])
def test_a_model_that_is_not_there_is_named(model: str) -> None:
    with pytest.raises(ValueError, match=model):
        sheen.load(model)


def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="device 'nothing'"):
        sheen.load(str(CHECKPOINT), device="nothing")


def test_without_a_name_the_first_voice_speaks(checkpoint: Path) -> None:
    with sheen.load(str(checkpoint), device="cpu", max_seconds=1.0) as speaker:
        first, other = speaker.voices[0], speaker.voices[-1]
        unnamed, named, third = (speaker.synthesize("Yes.", name) for name in (None, first, other))
    np.testing.assert_array_equal(unnamed.samples, named.samples)
    assert not np.array_equal(unnamed.samples, third.samples)


def test_a_closed_speaker_says_so() -> None:
    speaker = sheen.load(str(CHECKPOINT), device="cpu")
    speaker.close()
    speaker.close()
    with pytest.raises(RuntimeError, match="closed"):
        speaker.synthesize("Yes.", VOICE)


@pytest.mark.slow
def test_a_reference_goes_before_the_speech_and_is_not_heard(
    speaker: Speaker, audio: Audio, tmp_path: Path
) -> None:
    audio.save(tmp_path / "spoken.wav")
    with pytest.raises(ValueError, match=r"audio: this model was not trained.*--reference-share"):
        speaker.reference(tmp_path / "spoken.wav", TEXT)
    reference = speaker.reference(tmp_path / "spoken.wav", f"  {TEXT}", form="one-turn")
    again = speaker.reference(tmp_path / "spoken.wav", TEXT, form="one-turn")
    assert reference.text == again.text, "but for its spaces"
    assert 0 <= audio.seconds - len(reference.frames) * 2048 / 24_000 < 0.6, "less its silence"
    spoken = speaker.synthesize("Yes.", reference=reference)
    assert len(spoken.samples) > 0
    assert len(spoken.samples) % 2048 == 0
    streamed = np.concatenate(list(speaker.stream("Yes.", reference=reference)))
    np.testing.assert_array_equal(streamed, spoken.samples)
    with pytest.raises(ValueError, match="give only one of them"):
        speaker.synthesize("Yes.", VOICE, reference=reference)


def test_a_recording_that_is_no_reference_is_refused_by_argument(
    speaker: Speaker, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="audio: the recording cannot be read"):
        speaker.reference(b"not audio", TEXT, form="one-turn")
    with pytest.raises(FileNotFoundError, match=r"nothing\.wav"):
        speaker.reference(tmp_path / "nothing.wav", TEXT, form="one-turn")
