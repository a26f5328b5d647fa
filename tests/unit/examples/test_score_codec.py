"""The codec's scores of the English example: what is chosen, summed up, printed and refused."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.example import (
    CODEC,
    ENGLISH,
    RATE,
    RECORDINGS,
    VOICE,
    clips_of,
    load_script,
    read_clip,
)
from helpers.recogniser import tiny_en
from sheen.scoring.speaker_id import ALL

sys.path.append(str(ENGLISH))
score_codec = load_script(ENGLISH / "score_codec.py")
Scored = score_codec.Scored


def scored(**changes: object) -> object:
    fields: dict[str, object] = {
        "id": "a",
        "voice": "heart",
        "text": "It cost twenty four dollars.",
        "seconds": 2.0,
        "recording_transcript": "It cost $24.",
        "codec_transcript": "It lost $24.",
        "recording_dnsmos": 3.5,
        "codec_dnsmos": 3.0,
        "recording_rms": 0.1,
        "codec_rms": 0.08,
    }
    return Scored(**(fields | changes))


def test_recordings_are_spread_over_the_manifest() -> None:
    assert score_codec.spread(range(10), 4) == [0, 2, 5, 7]
    assert score_codec.spread(range(3), 10) == [0, 1, 2]


def test_numerals_are_no_errors_and_wrong_words_are() -> None:
    found = score_codec.summarise([scored(), scored()], seed=0)
    assert found.recording_wer.errors == 0
    assert found.codec_wer.errors == 2
    assert found.wer_difference.difference == pytest.approx(found.codec_wer.rate)
    assert (found.recording_dnsmos, found.codec_dnsmos) == (3.5, 3.0)


def test_dnsmos_is_that_of_the_clips_that_have_it_on_both_sides() -> None:
    clips = [scored(), scored(codec_dnsmos=None, recording_dnsmos=2.0)]
    found = score_codec.summarise(clips, seed=0)
    assert (found.recording_dnsmos, found.codec_dnsmos) == (3.5, 3.0)
    assert score_codec.summarise(clips[1:], seed=0).codec_dnsmos is None


def test_distillmos_has_columns_where_it_was_measured() -> None:
    measured = scored(recording_distillmos=4.25, codec_distillmos=3.0)
    scores = score_codec.by_voice([measured, scored()], 0)
    assert scores[ALL].recording_distillmos == 4.25
    header, row = score_codec.render_table(scores).splitlines()
    assert "DistillMOS" in header
    assert row.split()[-4:] == ["4.25", "3.00", "-1.25", "0.800"]
    header, row = score_codec.render_table(score_codec.by_voice([scored()], 0)).splitlines()
    assert "DistillMOS" not in header
    assert row.split()[-4:] == ["3.50", "3.00", "-0.50", "0.800"]


def test_without_its_package_distillmos_is_left_out_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    find = importlib.util.find_spec
    hidden = "xls_r_sqa"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == hidden else find(name)
    )
    assert score_codec.open_distillmos() is None
    assert "is not installed: pip install --no-deps distillmos==" in caplog.text


def test_distillmos_hears_noise_and_does_not_score_silence() -> None:
    pytest.importorskip("distillmos", reason="optional: pip install --no-deps, see distill_mos.py")
    network = score_codec.open_distillmos()
    assert network is not None
    clip = clips_of(VOICE)[-1]
    clean = read_clip(clip)
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, len(clean)).astype(np.float32)
    assert network.score(clean, RATE) > 3.5 > network.score(noisy, RATE)
    assert network.score(0 * clean, RATE) is None


def test_the_first_levels_stay_and_the_others_are_of_another_recording() -> None:
    own = [np.arange(2), np.arange(4), np.arange(8)]
    other = [np.full(3, 7), np.full(6, 8), np.full(12, 9)]
    found = score_codec.first_levels(own, other, 1)
    assert [level.tolist() for level in found] == [[0, 1], [8] * 4, [9] * 8]
    back = score_codec.first_levels(other, own, 2)
    assert [len(level) for level in back] == [3, 6, 12]
    assert back[2].tolist() == [*range(8), *range(4)]
    assert list(score_codec.zip_rotated("abc")) == [("a", "b"), ("b", "c"), ("c", "a")]


def test_the_rms_ratio_is_that_of_all_samples() -> None:
    loud, silent = scored(), scored(seconds=6.0, recording_rms=0.0, codec_rms=0.0)
    assert score_codec.summarise([loud, silent], seed=0).rms_ratio == pytest.approx(0.8)
    # Of 2 s at 0.1 and 6 s at 0.2, all of them halved but for the first two seconds.
    halved = scored(seconds=6.0, recording_rms=0.2, codec_rms=0.1)
    wanted = np.sqrt((2 * 0.08**2 + 6 * 0.1**2) / (2 * 0.1**2 + 6 * 0.2**2))
    assert score_codec.summarise([loud, halved], seed=0).rms_ratio == pytest.approx(wanted)


def test_several_voices_have_a_row_each() -> None:
    assert list(score_codec.by_voice([scored()], 0)) == [ALL]
    voices = score_codec.by_voice([scored(), scored(voice="af_kore")], 0)
    assert list(voices) == ["af_kore", "heart", ALL]
    header, *rows = score_codec.render_table(voices).splitlines()
    assert "RMS out/in" in header
    assert "DNSMOS" in header
    assert [row.split()[0] for row in rows] == list(voices)
    assert "-0.50" in rows[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "lost.flac", "text": "one"}, r"lost\.flac"),
        ({"audio": "lost.flac", "text": "..."}, "no words"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    tmp_path: Path, row: dict[str, str], message: str
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps(row) + "\n", "utf-8")
    with pytest.raises(ValueError, match=rf"m\.jsonl.*{message}"):
        score_codec.read_recordings(str(manifest), 1, 24_000)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--codec", "{tmp}/none"], "--codec: "),
        (["--asr", "{tmp}/none"], "--asr: .*no such folder"),
        (["--count", "0"], "--count: 0 is less than 1"),
        (["--levels", "4"], "--levels 4: the codec has 3"),
    ],
)
def test_a_wrong_flag_is_named(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "--codec": str(CODEC),
        "--asr": tiny_en(),
        "--recordings": str(RECORDINGS),
        "--output": str(tmp_path / "out"),
    } | {flags[0]: flags[1].format(tmp=tmp_path)}
    with pytest.raises(SystemExit) as ended:
        score_codec.main([word for pair in given.items() for word in pair])
    assert ended.value.code == 2
    assert re.search(message, capsys.readouterr().err)
