"""Codec reports: the page and the JSON show all of it, and the example's script writes them.

The report of the real codec is that of four recordings; the others are of a codec whose codes are
the samples and an ASR that says what it is told to.
"""

import json
import logging
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from helpers.example import (
    ENGLISH,
    NEW_VOICE,
    RATE,
    VOICE,
    VOICES,
    clips_of,
    load_script,
    read_clip,
)
from helpers.measured import CODED, Measured, Told, measure, noisy
from helpers.pages import Page, assert_self_contained
from helpers.recogniser import tiny_en
from sheen.codec.snac import load_codec
from sheen.report.page import Clip, clip_row, save_png
from sheen.scoring.codec import CodecReport, Recording
from sheen.scoring.reports import CODEC_JSON, CODEC_PAGE, codec_rows, write_codec_report
from sheen.scoring.speaker_id import ALL

sys.path.append(str(ENGLISH))  # for its neighbours

codec_report = load_script(ENGLISH / "codec_report.py")

pytestmark = pytest.mark.usefixtures("speed_timed_briefly")


def page_in(folder: Path) -> Page:
    return Page((folder / CODEC_PAGE).read_text("utf-8"))


# The report


@pytest.fixture(scope="module")
def written(
    measured: Measured, recordings: list[Recording], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the real codec's report."""
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    report, decoded = measured
    write_codec_report(folder, report, recordings, decoded)
    return folder


@pytest.mark.slow
def test_the_json_of_a_codec_report_holds_everything(
    measured: Measured, recordings: list[Recording], written: Path
) -> None:
    report, _ = measured
    assert {path.name for path in written.iterdir()} == {CODEC_JSON, CODEC_PAGE}

    def refuse(constant: str) -> None:  # NaN and the infinities
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads((written / CODEC_JSON).read_text("utf-8"), parse_constant=refuse)
    assert content == asdict(report)
    assert [clip["name"] for clip in content["clips"]] == [item.name for item in recordings]
    assert set(content["voices"]) == {ALL, *CODED}


@pytest.mark.slow
def test_page_is_one_file_that_plays_two_clips_of_each_voice(
    measured: Measured, written: Path
) -> None:
    report, _ = measured
    page = page_in(written)
    html = (written / CODEC_PAGE).read_text("utf-8")
    assert "<title>Codec report</title>" in html
    assert_self_contained(html)
    assert page.attributes("aria-label", "audio") == [
        "Play recording",
        "Play reconstruction",
    ] * (2 * len(CODED))
    header, rows = codec_rows(report)
    assert [row[0] for row in rows] == [*CODED, ALL]
    for cell in (*header, *(cell for row in rows for cell in row), *(c.name for c in report.clips)):
        assert cell in page.text
    assert f"ASR: {report.asr}" in page.text


@pytest.mark.slow
def test_page_plays_the_worst_clips_first(tmp_path: Path) -> None:
    recordings = [noisy(name, "one two", voice) for voice in "vw" for name in ("p", "q", "r")]
    recordings = [replace(item, name=f"{item.voice}-{item.name}") for item in recordings]
    right, half, wrong = "one two", "one", "three four"
    asr = Told([right] * 6, [half, right, wrong, wrong, half, right], [wrong] * 6)
    report = measure(recordings, asr)
    decoded = [item.waveform for item in recordings]

    def shown(count: int) -> list[str]:
        write_codec_report(tmp_path, report, recordings, decoded, clips_per_voice=count)
        text = page_in(tmp_path).text
        names = [item.name for item in recordings if f"{item.name}: one two" in text]
        return sorted(names, key=lambda name: text.index(f"{name}: "))

    assert shown(1) == ["v-r", "w-p"]
    assert shown(2) == ["v-r", "v-p", "w-p", "w-q"]


def test_without_asr_the_worst_are_the_most_distant(tmp_path: Path) -> None:
    recordings = [noisy(name) for name in ("near", "far", "middle")]
    report = measure(recordings)
    clips = [
        replace(clip, mel_distance_db=distance)
        for clip, distance in zip(report.clips, (1.0, 9.0, 5.0), strict=True)
    ]
    report = replace(report, clips=clips)
    write_codec_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    text = page_in(tmp_path).text
    assert text.index("far: no text (9.0 dB)") < text.index("middle: no text (5.0 dB)")
    assert "near:" not in text


def test_the_table_is_one_row_a_voice() -> None:
    report = measure([noisy("a", "one two", "v")], Told(["one two"], ["one"], ["three four five"]))
    assert codec_rows(report) == (
        [
            "voice",
            "clips",
            "mel distance",
            "WER, recordings",
            "WER, reconstructions",
            "WER, difference",
            "WER, shuffled codes",
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


def test_without_asr_there_are_no_rates(tmp_path: Path) -> None:
    recordings = [noisy("a", "one", "v"), noisy("b", "two", "v")]
    report = measure(recordings)
    assert_no_rates(report)
    assert report.asr is None
    write_codec_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    text = page_in(tmp_path).text
    assert "ASR: none" in text
    assert "transcript:" not in text


@pytest.mark.parametrize("text", [None, "", "..."])
def test_without_texts_there_are_no_rates(text: str | None, tmp_path: Path) -> None:
    recordings = [noisy("a", text, "v"), noisy("b", text)]
    report = measure(recordings, Told())
    assert_no_rates(report)
    write_codec_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    assert json.loads((tmp_path / CODEC_JSON).read_text("utf-8"))["clips"][0]["text"] == text
    assert "word error" not in page_in(tmp_path).text


def assert_no_rates(report: CodecReport) -> None:
    for result in report.voices.values():
        assert result.recordings_wer is result.reconstructions_wer is result.shuffled_wer is None
        assert result.wer_difference is result.speaker_accuracy is None
    for clip in report.clips:
        assert (
            clip.recording_transcript
            is clip.reconstruction_transcript
            is clip.identified_speaker
            is None
        )
    assert codec_rows(report)[0] == ["voice", "clips", "mel distance"]


@pytest.mark.slow
def test_recordings_without_text_are_not_transcribed(tmp_path: Path) -> None:
    """Some with a text, some without, and a voice none of whose recordings has one."""
    recordings = [noisy("a", "one", "v"), noisy("b", None, "v"), noisy("c", "!", "w"), noisy("d")]
    asr = Told(["one"], ["one"], ["two"])
    report = measure(recordings, asr)
    assert [len(clips) for clips in asr.clips] == [1, 1, 1]
    assert [clip.recording_transcript for clip in report.clips] == ["one", None, None, None]
    assert report.voices["v"].recordings_wer == report.voices[ALL].recordings_wer is not None
    assert report.voices["w"].recordings_wer is None
    assert report.voices[ALL].clips == 4
    header, rows = codec_rows(report)
    assert rows[1] == ["w", "1", "0.00 dB", "", "", "", ""]
    assert len(header) == 7
    write_codec_report(tmp_path, report, recordings, [item.waveform for item in recordings])
    assert "c: ! (0.0 dB)" in page_in(tmp_path).text


@pytest.mark.slow
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
    save_png(row, triple, stacked=True)
    stacked = imread(triple, format="png")
    assert np.array_equal(np.split(stacked, 3), np.split(three, 3, axis=1))
    # A page can still show the row, as if nothing had been drawn of it.
    assert not any(plot.figure.texts for plot in row.plots)


# The example's script


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of six recordings of each of two voices."""
    path = tmp_path_factory.mktemp("listed") / "list.jsonl"
    rows = [
        {"id": clip.id, "audio": str(clip.path), "text": clip.text, "speaker": voice}
        for voice in CODED
        for clip in clips_of(voice)[2:8]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.slow
def test_script_writes_a_report_and_prints_it(
    listed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    output, image = tmp_path / "report", tmp_path / "pictures" / "clip.png"
    arguments = ["--per-voice", "1", "--data", str(listed), "--profiles", str(listed)]
    arguments += ["--output", str(output), "--image", str(image), "--asr", tiny_en()]
    assert codec_report.main([*arguments, "--clip", clips_of(CODED[1])[2].id]) == 0
    report = json.loads((output / CODEC_JSON).read_text("utf-8"))
    assert [clip["voice"] for clip in report["clips"]] == list(CODED)
    assert len(page_in(output).attributes("src", "audio")) == 2 * len(CODED)
    assert imread(image).shape[1] == 2 * 640
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:4]] == ["voice", *CODED, ALL]
    assert all(len(line.split("  ")) >= 8 for line in printed[:4])
    assert "faster-whisper" in printed[4]
    assert report["asr"] in printed[4]
    assert printed[6] == f"page: {output / CODEC_PAGE}"
    # A score of all recordings takes minutes: each stage says that it begins.
    said = " ".join(caplog.messages)
    for stage in ("reading", "enrolling the speakers", "encoding 2", "decoding", "transcribing 2"):
        assert stage in said


def test_script_spreads_few_recordings_over_the_list(listed: Path) -> None:
    recordings = codec_report.read_recordings(str(listed), RATE, 2)
    expected = [clips_of(voice)[2 + place] for voice in CODED for place in (0, 3)]
    assert [item.name for item in recordings] == [clip.id for clip in expected]
    assert [item.text for item in recordings] == [clip.text for clip in expected]
    assert [item.voice for item in recordings] == [clip.speaker for clip in expected]
    np.testing.assert_array_equal(recordings[0].waveform, read_clip(expected[0]))


def test_script_reads_the_demos_recordings_where_none_are_named() -> None:
    flags = codec_report.parser().parse_args([])
    recordings = codec_report.read_recordings(flags.data, RATE, 1)
    assert sorted({item.voice for item in recordings}) == sorted({*VOICES, NEW_VOICE})
    assert flags.clip in {clip.id for clip in clips_of(VOICE)}
    load_codec(flags.codec)


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
        (
            ["--image", "{tmp}/x.png", "--clip", f"{VOICE}-999999"],
            f"--clip {VOICE}-999999: .* {VOICE}-.* is one",
        ),
        (["--asr", "{tmp}/none"], "--asr: .*no such folder"),
        (["--output", "{tmp}/file"], "--output: .*File exists"),
        (["--image", "{tmp}/file/x.png"], "--image: .*(File exists|Not a directory)"),
        (["--per-voice", "0"], "--per-voice: 0 is less than 1"),
        (["--per-voice", "-3"], "--per-voice: -3 is less than 1"),
        (["--per-voice", "some"], "--per-voice: invalid"),
        (["--threads", "0"], "--threads: 0 is less than 1"),
        (["--seed", "-1"], "--seed: -1 is less than 0"),
    ],
)
def test_script_names_the_flag_that_is_wrong(
    listed: Path,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way", "utf-8")
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    defaults = ["--data", str(listed), "--output", str(tmp_path / "out"), "--asr", tiny_en()]
    assert_refused([*defaults, "--per-voice", "1", *given], said, capsys)


@pytest.mark.slow
def test_script_names_the_recording_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.flac").write_bytes(b"no sound")
    for audio, why in (("broken.flac", "decoding failed"), ("none.flac", ".*")):
        defaults = ["--output", str(tmp_path / "out"), "--asr", tiny_en()]
        defaults += ["--data", jsonl(tmp_path, audio)]
        assert_refused(defaults, rf"--data: .*list\.jsonl:1: .*/{audio}: {why}", capsys)


def assert_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        codec_report.main(arguments)
    assert ended.value.code == 2
    assert re.search(said, capsys.readouterr().err)
