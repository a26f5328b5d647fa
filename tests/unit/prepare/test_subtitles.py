"""Subtitles as people and programs write them: what is spoken, once, and when it is shown."""

from pathlib import Path

import pytest

from sheen.prepare.sources.subtitles import Cue, joined_text, read_subtitles

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<i>It goes on</i> --> here

00:00:03,000 --> 00:00:04,000
- Hello there.
- {\\an8}Hi!

3
00:00:05,000 --> 00:00:06,000

[Music]

4
00:00:07,000 --> 00:00:08,000
(door slams) >> Well-known &amp; loved ♪ la la ♪ words
"""

VTT = """WEBVTT - a title

NOTE not spoken
neither

STYLE
::cue { color: red }

intro
00:01.000 --> 00:02.500 align:start position:0%
<v Ann>It's <00:00:01.500><c>me</c></v>

1:00:03.000 --> 1:00:04.000
&gt;&gt; Two &lt;words&gt;
"""

ROLLING = """WEBVTT
Kind: captions
Language: en

00:00:01.000 --> 00:00:02.990 align:start position:0%
\u0020
so<00:00:01.200><c> today</c><00:00:01.500><c> we</c>

00:00:02.990 --> 00:00:03.000 align:start position:0%
so today we
\u0020

00:00:03.000 --> 00:00:05.000 align:start position:0%
so today we
look<00:00:03.500><c> at</c><00:00:04.000><c> maps</c>

00:00:05.000 --> 00:00:05.010 align:start position:0%
look at maps
\u0020
"""


def test_srt_gives_what_is_spoken(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text(SRT.replace("\n", "\r\n"), "utf-8")
    assert read_subtitles(str(tmp_path / "a.srt")) == [
        Cue(1.0, 2.5, "It goes on --> here"),
        Cue(3.0, 4.0, "Hello there. Hi!"),
        Cue(7.0, 8.0, "Well-known & loved words"),
    ]


def test_vtt_gives_what_is_spoken_and_by_whom(tmp_path: Path) -> None:
    (tmp_path / "a.vtt").write_text(VTT, "utf-8")
    assert read_subtitles(str(tmp_path / "a.vtt")) == [
        Cue(1.0, 2.5, "It's me", "Ann"),
        Cue(3603.0, 3604.0, "Two <words>"),
    ]


def test_captions_that_roll_are_spoken_once(tmp_path: Path) -> None:
    (tmp_path / "a.vtt").write_text(ROLLING, "utf-8")
    assert joined_text(read_subtitles(str(tmp_path / "a.vtt"))) == "so today we look at maps"


@pytest.mark.parametrize("content", ["", "no subtitles at all\n", "1\n00:00 -> 00:01\nwhat\n"])
@pytest.mark.parametrize("suffix", ["srt", "vtt"])
def test_a_file_without_a_cue_is_named(tmp_path: Path, suffix: str, content: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(content, "utf-8")
    with pytest.raises(ValueError, match=f"a.{suffix}: "):
        read_subtitles(str(path))


def test_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(SRT.replace("Hello", "Grüße").encode("cp1252", "ignore"))
    with pytest.raises(ValueError, match=r"a\.srt: line \d+ is not UTF-8"):
        read_subtitles(str(tmp_path / "a.srt"))
