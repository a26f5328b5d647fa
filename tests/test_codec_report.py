"""Judging a codec: the figures are those of its clips, the control fails, the page shows it all.

What concerns the real codec and ear is measured once, on two held-out recordings of each voice. The
rest looks at the bookkeeping, with a codec whose codes are the samples and a listener that says
what it is told to.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from numpy.typing import NDArray

from conftest import CODEC, DIGITS, VOICES, load_script
from sheen.core.audio import decode_audio
from sheen.core.codec import Codec
from sheen.core.spectral import mel_distance
from sheen.core.tokens import Codes
from sheen.judge import codec_quality
from sheen.judge.codec_quality import (
    ALL,
    CodecReport,
    LevelResult,
    Recording,
    code_usage,
    decode_clip,
    measure_codec,
    shuffle_codes,
)
from sheen.judge.codec_report import JSON_FILE, PAGE_FILE, voice_rows, write_report
from sheen.judge.hearing import Pocketsphinx
from sheen.judge.voices import VoiceProfiles
from sheen.report.clips import Clip, clip_row, save_png
from test_report import Page

judge_codec = load_script(DIGITS / "judge_codec.py")

RATE = 24_000
HELD_OUT = ("h001", "h010")  # of two and of three digits

Waveform = NDArray[np.float32]
Measured = tuple[CodecReport, list[Waveform]]


@pytest.fixture(scope="module", autouse=True)
def _speed_is_timed_briefly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec_quality, "SPEED_SECONDS", 0.2)
        yield


def rows_of(folder: str, voice: str) -> list[list[str]]:
    lines = (DIGITS / folder / "metadata.csv").read_text("utf-8").splitlines()
    return [line.split("|") for line in lines if line.endswith(f"|{voice}")]


def read_clip(folder: str, name: str) -> Waveform:
    return decode_audio((DIGITS / folder / "wavs" / f"{name}.flac").read_bytes(), RATE)


@pytest.fixture(scope="module")
def profiles() -> VoiceProfiles:
    few = {
        voice: [read_clip("corpus", row[0]) for row in rows_of("corpus", voice)[:6]]
        for voice in VOICES
    }
    return VoiceProfiles.fit(few, RATE)


@pytest.fixture(scope="module")
def recordings() -> list[Recording]:
    return [
        Recording(name, read_clip("heldout", name), text, voice)
        for voice in VOICES
        for name, text, *_ in rows_of("heldout", voice)
        if name.endswith(HELD_OUT)
    ]


@pytest.fixture(scope="module")
def measured(codec: Codec, recordings: list[Recording], profiles: VoiceProfiles) -> Measured:
    """The real codec, heard by the real listener."""
    listener = Pocketsphinx(DIGITS / "digits.gram")
    return measure_codec(codec, "small", recordings, listener=listener, profiles=profiles)


class PcmCodec:
    """The perfect codec: its codes are the samples, of 15 bits."""

    sample_rate = RATE
    codebook_size = 1 << 15
    strides = (1,)
    frame_samples = 1

    def encode(self, waveforms: Sequence[torch.Tensor]) -> list[Codes]:
        return [[np.rint(wave.numpy() * 16384 + 16384).astype(np.int16)] for wave in waveforms]

    def decode(self, codes: Codes, seeds: Sequence[int]) -> torch.Tensor:
        return (torch.from_numpy(codes[0]).float() - 16384) / 16384


class Told:
    """Hears the given texts: those of recordings, then of reconstructions, then of the control."""

    name = "told"

    def __init__(self, *texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.clips: list[list[Waveform]] = []

    def transcribe(self, waveforms: Sequence[Waveform], sample_rate: int) -> list[str]:
        assert sample_rate == RATE
        self.clips.append(list(waveforms))
        return list(self.texts[len(self.clips) - 1])


def noisy(name: str, text: str | None = None, voice: str | None = None, n: int = 2400) -> Recording:
    """Sound without a meaning, of samples that PcmCodec has codes for."""
    draws = np.random.default_rng(list(name.encode())).uniform(-0.5, 0.5, n)
    return Recording(name, (np.rint(draws * 16384) / 16384).astype(np.float32), text, voice)


def measure(
    recordings: Sequence[Recording], listener: Told | None = None, **arguments: Any
) -> CodecReport:
    pcm: Any = PcmCodec()
    return measure_codec(pcm, "pcm", recordings, listener=listener, **arguments)[0]


def untimed(report: CodecReport) -> CodecReport:
    return replace(report, encode_realtime=0.0, decode_realtime=0.0)


def page_in(folder: Path) -> Page:
    return Page((folder / PAGE_FILE).read_text("utf-8"))


# The real codec and the real ear


def test_the_codec_keeps_the_words_and_shuffling_its_codes_does_not(measured: Measured) -> None:
    report, _ = measured
    total = report.voices[ALL]
    assert total.recordings is not None
    assert total.reconstructions is not None
    assert total.shuffled is not None
    assert total.recordings.units == 4 * (2 + 3)
    assert total.recordings.rate <= 0.1
    assert total.reconstructions.rate <= 0.4
    assert total.shuffled.rate >= 0.7


def test_the_voices_are_heard_in_the_reconstructions(measured: Measured) -> None:
    report, _ = measured
    right = [clip.voice_heard == clip.voice for clip in report.clips]
    assert report.voices[ALL].voice_right == np.mean(right) >= 0.7
    for voice in VOICES:
        own = [clip.voice_heard == voice for clip in report.clips if clip.voice == voice]
        assert report.voices[voice].voice_right == np.mean(own)


def test_reconstructions_are_the_recordings_in_length_and_order(
    measured: Measured, recordings: list[Recording]
) -> None:
    report, decoded = measured
    assert [clip.name for clip in report.clips] == [item.name for item in recordings]
    for clip, audio, item in zip(report.clips, decoded, recordings, strict=True):
        assert audio.shape == item.waveform.shape
        assert audio.dtype == np.float32
        assert clip.seconds == pytest.approx(len(audio) / RATE, abs=1e-3)
        own = mel_distance(audio, item.waveform, RATE)
        assert clip.mel_distance_db == pytest.approx(own, abs=1e-3)
        others = [
            mel_distance(audio[:n], other.waveform[:n], RATE)
            for other in recordings
            if other is not item and (n := min(len(audio), len(other.waveform)))
        ]
        assert own < min(others)


def test_levels_count_all_codes(measured: Measured, codec: Codec) -> None:
    report, decoded = measured
    frames = sum(-(-len(audio) // codec.frame_samples) for audio in decoded)
    assert [level.codes for level in report.levels] == [frames, 2 * frames, 4 * frames]
    for level in report.levels:
        assert level.size == codec.codebook_size
        assert 1 < level.perplexity <= level.used <= min(level.codes, level.size)


def test_the_seed_is_all_that_differs(codec: Codec) -> None:
    """Noise, shuffling and bootstrap intervals are drawn from it; speeds are the machine's."""
    recordings = [
        Recording(name, read_clip("heldout", name), "one two", "v")
        for name in ("slt-h001", "rms-h001")
    ]

    def run(seed: int) -> tuple[CodecReport, list[Waveform]]:
        listener = Told(["one two", "one"], ["one", "two two"], ["", ""])
        report, _ = measure_codec(codec, "small", recordings, listener=listener, seed=seed)
        return report, [clip for clips in listener.clips[1:] for clip in clips]

    (first, played), (again, same), (_, others) = run(3), run(3), run(4)
    assert untimed(first) == untimed(again)
    assert first.seed == 3
    assert first.encode_realtime > 0
    assert first.decode_realtime > 0
    assert len(played) == 4
    for one, two, other in zip(played, same, others, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, other)


def test_a_clip_decodes_to_as_many_samples_as_it_had(codec: Codec) -> None:
    """No multiple of a frame: the padding must not be heard or seen."""
    wave = torch.from_numpy(read_clip("heldout", "slt-h001")[: 3 * codec.frame_samples + 7])
    (codes,) = codec.encode([wave])
    assert len(codes[0]) == 4
    whole = decode_clip(codec, codes, 4 * codec.frame_samples, 0)
    np.testing.assert_array_equal(decode_clip(codec, codes, len(wave), 0), whole[: len(wave)])


# The figures


def test_rates_are_those_of_each_voice_and_of_all() -> None:
    recordings = [
        noisy("a1", "one two three four", "a"),
        noisy("b1", "five six", "b"),
        noisy("a2", "seven eight", "a"),
    ]
    listener = Told(
        ["one two three", "five six", "seven eight"],
        ["one two", "five nine", "seven eight"],
        ["", "", "nine nine nine"],
    )
    report = measure(recordings, listener)
    assert list(report.voices) == [ALL, "a", "b"]
    for voice, clips, heard, made, control in (
        ("a", 2, 1 / 6, 2 / 6, 7 / 6),
        ("b", 1, 0, 1 / 2, 1),
        (ALL, 3, 1 / 8, 3 / 8, 9 / 8),
    ):
        result = report.voices[voice]
        assert result.clips == clips
        assert result.recordings is not None
        assert result.reconstructions is not None
        assert result.difference is not None
        assert result.shuffled is not None
        assert result.recordings.rate == pytest.approx(heard)
        assert result.reconstructions.rate == pytest.approx(made)
        assert result.difference.difference == pytest.approx(made - heard)
        assert result.shuffled.rate == pytest.approx(control)
        assert result.recordings.utterances == result.difference.utterances == clips
    assert report.listener == "told"
    assert report.clips[1].heard_recording == "five six"
    assert report.clips[1].heard_reconstruction == "five nine"
    # What was played to the listener is what the columns are named after.
    played, rebuilt, control_clips = listener.clips
    for item, original, copy, shuffled in zip(
        recordings, played, rebuilt, control_clips, strict=True
    ):
        np.testing.assert_array_equal(original, item.waveform)
        np.testing.assert_array_equal(copy, item.waveform)
        assert not np.array_equal(shuffled, item.waveform)
        np.testing.assert_array_equal(np.sort(shuffled), np.sort(item.waveform))


def test_a_perfect_codec_has_no_distance(recordings: list[Recording]) -> None:
    item = recordings[0]
    assert mel_distance(item.waveform, item.waveform, RATE) == 0
    report = measure([noisy("a", voice="v"), noisy("b", voice="v")])
    assert [clip.mel_distance_db for clip in report.clips] == [0, 0]
    assert report.voices["v"].mel_distance_db == 0


def test_more_recordings_than_a_batch_keep_their_order() -> None:
    recordings = [noisy(str(i), n=600 + i) for i in range(codec_quality.BATCH + 3)]
    pcm: Any = PcmCodec()
    report, decoded = measure_codec(pcm, "pcm", recordings)
    assert [clip.name for clip in report.clips] == [item.name for item in recordings]
    for audio, item in zip(decoded, recordings, strict=True):
        np.testing.assert_array_equal(audio, item.waveform)


def test_without_a_listener_there_are_no_rates(tmp_path: Path) -> None:
    recordings = [noisy("a", "one", "v"), noisy("b", "two", "v")]
    report = measure(recordings)
    assert_no_rates(report)
    assert report.listener is None
    write_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    text = page_in(tmp_path).text
    assert "Listener: none" in text
    assert "heard:" not in text


@pytest.mark.parametrize("text", [None, "", "..."])
def test_without_texts_there_are_no_rates(text: str | None, tmp_path: Path) -> None:
    recordings = [noisy("a", text, "v"), noisy("b", text)]
    report = measure(recordings, Told())
    assert_no_rates(report)
    write_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    assert json.loads((tmp_path / JSON_FILE).read_text("utf-8"))["clips"][0]["text"] == text
    assert "word error" not in page_in(tmp_path).text


def assert_no_rates(report: CodecReport) -> None:
    for result in report.voices.values():
        assert result.recordings is result.reconstructions is result.shuffled is None
        assert result.difference is result.voice_right is None
    for clip in report.clips:
        assert clip.heard_recording is clip.heard_reconstruction is clip.voice_heard is None
    assert voice_rows(report)[0] == ["voice", "clips", "mel distance"]


def test_what_has_no_text_is_not_listened_to(tmp_path: Path) -> None:
    """Some with a text, some without, and a voice none of whose recordings has one."""
    recordings = [noisy("a", "one", "v"), noisy("b", None, "v"), noisy("c", "!", "w"), noisy("d")]
    listener = Told(["one"], ["one"], ["two"])
    report = measure(recordings, listener)
    assert [len(clips) for clips in listener.clips] == [1, 1, 1]
    assert [clip.heard_recording for clip in report.clips] == ["one", None, None, None]
    assert report.voices["v"].recordings == report.voices[ALL].recordings is not None
    assert report.voices["w"].recordings is None
    assert report.voices[ALL].clips == 4
    header, rows = voice_rows(report)
    assert rows[1] == ["w", "1", "0.00 dB", "", "", "", ""]
    assert len(header) == 7
    write_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    assert "c: ! (0.0 dB)" in page_in(tmp_path).text


def test_voices_that_cannot_be_heard_are_wrong_and_unknown_ones_left_out(
    profiles: VoiceProfiles, recordings: list[Recording]
) -> None:
    silent = Recording("silent", np.zeros(RATE, np.float32), None, "slt")
    stranger = Recording("stranger", recordings[0].waveform, None, "nobody")
    unnamed = Recording("unnamed", recordings[0].waveform)
    report = measure([recordings[0], silent, stranger, unnamed], profiles=profiles)
    assert [clip.voice_heard for clip in report.clips] == ["slt", "", "slt", "slt"]
    assert report.voices["slt"].voice_right == 0.5
    assert report.voices["nobody"].voice_right is None
    assert report.voices[ALL].voice_right == 0.5


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no recordings"):
        measure([])
    with pytest.raises(ValueError, match="'all'"):
        measure([noisy("a", voice=ALL)])


def test_shuffling_keeps_the_codes_of_each_level() -> None:
    draws = np.random.default_rng(0)
    codes = [draws.integers(0, 9, n).astype(np.int16) for n in (30, 60, 120)]
    before = [level.copy() for level in codes]
    shuffled = shuffle_codes(codes, 5)
    for level, kept, moved in zip(codes, before, shuffled, strict=True):
        np.testing.assert_array_equal(level, kept)
        assert moved.dtype == np.int16
        assert not np.array_equal(moved, level)
        np.testing.assert_array_equal(np.sort(moved), np.sort(level))
    for level, again in zip(shuffled, shuffle_codes(codes, 5), strict=True):
        np.testing.assert_array_equal(level, again)
    assert not np.array_equal(shuffle_codes(codes, 6)[2], shuffled[2])


@pytest.mark.parametrize("count", [1, 2, 7, 64])
def test_perplexity_of_uniform_use_is_the_number_of_codes(count: int) -> None:
    clips: list[Codes] = [[np.arange(count, dtype=np.int16)] for _ in range(3)]
    assert code_usage(clips, 64) == [LevelResult(3 * count, count, float(count), 64)]


def test_usage_is_counted_over_clips_level_by_level() -> None:
    clips = [
        [np.array([5, 5], np.int16), np.array([0, 1, 0, 2], np.int16)],
        [np.array([5], np.int16), np.array([1, 3], np.int16)],
    ]
    coarse, fine = code_usage(clips, 8)
    assert coarse == LevelResult(3, 1, 1.0, 8)
    # Shares 1/3, 1/3, 1/6, 1/6: the entropy is ln 3 / 1.5 + ln 6 / 3, whose exponential is 3.78.
    assert fine == LevelResult(6, 4, 3.8, 8)


# The report


@pytest.fixture(scope="module")
def written(
    measured: Measured, recordings: list[Recording], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the real codec's report."""
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    report, decoded = measured
    write_report(folder, report, recordings, decoded)
    return folder


def test_json_holds_everything(
    measured: Measured, recordings: list[Recording], written: Path
) -> None:
    report, _ = measured
    assert {path.name for path in written.iterdir()} == {JSON_FILE, PAGE_FILE}

    def refuse(constant: str) -> None:  # NaN and the infinities
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((written / JSON_FILE).read_text("utf-8"), parse_constant=refuse)
    assert content == asdict(report)
    assert [clip["name"] for clip in content["clips"]] == [item.name for item in recordings]
    assert set(content["voices"]) == {ALL, *VOICES}


def test_page_is_one_file_that_plays_two_clips_of_each_voice(
    measured: Measured, written: Path
) -> None:
    report, _ = measured
    page = page_in(written)
    html = (written / PAGE_FILE).read_text("utf-8")
    assert "<title>Codec report</title>" in html
    links = [uri for name in ("src", "href") for uri in page.attributes(name)]
    assert all(link.startswith(("data:", "#section-")) for link in links)
    assert "//" not in re.sub('base64,[^"]*', "", html)
    assert page.attributes("aria-label", "audio") == [
        "Play recording",
        "Play reconstruction",
    ] * (2 * len(VOICES))
    header, rows = voice_rows(report)
    assert [row[0] for row in rows] == [*VOICES, ALL]
    for cell in (*header, *(cell for row in rows for cell in row), *(c.name for c in report.clips)):
        assert cell in page.text
    assert f"Listener: {report.listener}" in page.text


def test_page_plays_the_worst_clips_first(tmp_path: Path) -> None:
    recordings = [noisy(name, "one two", voice) for voice in "vw" for name in ("p", "q", "r")]
    recordings = [replace(item, name=f"{item.voice}-{item.name}") for item in recordings]
    right, half, wrong = "one two", "one", "three four"
    listener = Told([right] * 6, [half, right, wrong, wrong, half, right], [wrong] * 6)
    report = measure(recordings, listener)
    decoded = [item.waveform for item in recordings]

    def shown(count: int) -> list[str]:
        write_report(tmp_path, report, recordings, decoded, clips_per_voice=count)
        text = page_in(tmp_path).text
        names = [item.name for item in recordings if f"{item.name}: one two" in text]
        return sorted(names, key=lambda name: text.index(f"{name}: "))

    assert shown(1) == ["v-r", "w-p"]
    assert shown(2) == ["v-r", "v-p", "w-p", "w-q"]


def test_without_listener_the_worst_are_the_most_distant(tmp_path: Path) -> None:
    recordings = [noisy(name) for name in ("near", "far", "middle")]
    report = measure(recordings)
    clips = [
        replace(clip, mel_distance_db=distance)
        for clip, distance in zip(report.clips, (1.0, 9.0, 5.0), strict=True)
    ]
    report = replace(report, clips=clips)
    write_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    text = page_in(tmp_path).text
    assert text.index("far: no text (9.0 dB)") < text.index("middle: no text (5.0 dB)")
    assert "near:" not in text


def test_the_table_is_one_row_a_voice() -> None:
    report = measure([noisy("a", "one two", "v")], Told(["one two"], ["one"], ["three four five"]))
    assert voice_rows(report) == (
        [
            "voice",
            "clips",
            "mel distance",
            "WER of recordings",
            "of reconstructions",
            "difference",
            "of shuffled codes",
        ],
        [
            [
                voice,
                "1",
                "0.00 dB",
                "0.0% [0.0%, 0.0%]",
                "50.0% [50.0%, 50.0%]",
                "+50.0% [+50.0%, +50.0%]",
                "150.0% [150.0%, 150.0%]",
            ]
            for voice in ("v", ALL)
        ],
    )


def test_png_is_as_wide_as_its_clips_together(tmp_path: Path) -> None:
    clips = [Clip(name, noisy(name).waveform, RATE) for name in ("one", "two", "three")]
    # A name is only a name: what is written is a PNG.
    single, triple = tmp_path / "one.png", tmp_path / "three.picture"
    row = clip_row(clips)
    save_png(clip_row(clips[:1]), single)
    save_png(row, triple)
    assert triple.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    one, three = imread(single), imread(triple, format="png")
    assert three.shape == (one.shape[0], 3 * one.shape[1], 4)
    assert one.shape[1] == 640
    for part in np.split(three, 3, axis=1):
        assert (part[:40] < 0.5).any()  # the title
        assert np.ptp(part[200:400], axis=(0, 1)).max() > 0.5  # the spectrogram
    # A page can still show the row, as if nothing had been drawn of it.
    assert not any(plot.figure.texts for plot in row.plots)


# The example's script


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An LJSpeech folder of five recordings of each voice, enough for profiles."""
    folder = tmp_path_factory.mktemp("few")
    (folder / "wavs").mkdir()
    rows = [row for voice in VOICES for row in rows_of("corpus", voice)[:5]]
    for name, *_ in rows:
        shutil.copy(DIGITS / "corpus" / "wavs" / f"{name}.flac", folder / "wavs")
    (folder / "metadata.csv").write_text("".join("|".join(row) + "\n" for row in rows), "utf-8")
    return str(folder)


def test_script_writes_a_report_and_prints_it(
    few: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    output, image = tmp_path / "report", tmp_path / "pictures" / "clip.png"
    arguments = ["--per-voice", "1", "--profiles", few, "--output", str(output)]
    assert judge_codec.main([*arguments, "--image", str(image), "--clip", "awb-h001"]) == 0
    report = json.loads((output / JSON_FILE).read_text("utf-8"))
    assert [clip["voice"] for clip in report["clips"]] == list(VOICES)
    assert len(page_in(output).attributes("src", "audio")) == 2 * len(VOICES)
    assert imread(image).shape[1] == 2 * 640
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:6]] == ["voice", *VOICES, ALL]
    assert all(len(line.split("  ")) >= 8 for line in printed[:6])
    assert "pocketsphinx" in printed[6]
    assert report["listener"] in printed[6]
    assert printed[8] == f"page: {output / PAGE_FILE}"
    # A judgement of all recordings takes minutes: each stage says that it begins.
    said = " ".join(caplog.messages)
    for stage in ("reading", "learning the voices", "encoding 4", "decoding", "listening to 4"):
        assert stage in said


def test_script_spreads_few_recordings_over_the_list() -> None:
    recordings = judge_codec.read_recordings(str(DIGITS / "heldout"), RATE, 2)
    assert [item.name for item in recordings] == [
        f"{voice}-{number}" for voice in VOICES for number in ("h001", "h051")
    ]
    assert {item.voice for item in recordings} == set(VOICES)
    assert recordings[0].text == "eight seven"
    np.testing.assert_array_equal(recordings[0].waveform, read_clip("heldout", "slt-h001"))


def jsonl(folder: Path, audio: str) -> str:
    path = folder / "list.jsonl"
    path.write_text(json.dumps({"audio": audio, "text": "one"}) + "\n", "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--codec", "{tmp}/none"], "--codec: .*/none': no such folder"),
        (["--data", "{tmp}/none"], "--data: .*/none: no such file or folder"),
        (["--profiles", "{tmp}/none"], "--profiles: .*/none: no such file or folder"),
        (["--image", "{tmp}/x.png", "--clip", "slt-h999"], "--clip slt-h999: .* slt-h001 is one"),
        (["--grammar", "{tmp}/none.gram"], "--grammar: .*No such file"),
        (["--grammar", "{tmp}/bad.gram"], "--grammar: .*refuses it"),
        (["--judge", "{tmp}/none"], "--judge: .*no such folder"),
        (["--output", "{tmp}/bad.gram"], "--output: .*File exists"),
        (["--image", "{tmp}/bad.gram/x.png"], "--image: .*(File exists|Not a directory)"),
        (["--per-voice", "0"], "--per-voice: 0 is less than 1"),
        (["--per-voice", "-3"], "--per-voice: -3 is less than 1"),
        (["--per-voice", "some"], "--per-voice: invalid"),
        (["--threads", "0"], "--threads: 0 is less than 1"),
        (["--seed", "-1"], "--seed: -1 is less than 0"),
    ],
)
def test_script_names_the_flag_that_is_wrong(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.gram").write_text("no grammar", "utf-8")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = ["--codec", str(CODEC), "--output", str(tmp_path / "out"), "--per-voice", "1"]
    assert_refused([*defaults, *given], said, capsys)


def test_script_names_the_recording_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.flac").write_bytes(b"no sound")
    for audio, why in (("broken.flac", "decoding failed"), ("none.flac", ".*")):
        defaults = ["--output", str(tmp_path / "out"), "--data", jsonl(tmp_path, audio)]
        assert_refused(defaults, rf"--data: .*list\.jsonl:1: .*/{audio}: {why}", capsys)


def assert_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        judge_codec.main(arguments)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)
