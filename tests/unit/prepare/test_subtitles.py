"""What of subtitles is spoken."""

from pathlib import Path

import pytest

from sheen.prepare.subtitles import Cue, joined_text, read_subtitles

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


CUE = "00:00:01.000 --> 00:00:02.000"
LATER = "00:00:03.000 --> 00:00:04.000"


@pytest.mark.parametrize(
    ("suffix", "content", "spoken"),
    [
        ("vtt", f"WEBVTT\n\n{CUE}\nOne.\n\nNOTE not\nspoken\n\n{LATER}\nTwo.\n", "One. Two."),
        ("vtt", f"WEBVTT\n\n{CUE}\nOne.\n\nNOTE at the end\n", "One."),
        # As meetings are written by Teams, and by others with names of their own.
        ("vtt", f"WEBVTT\n\n5f2b-07/1-0\n{CUE}\nOne.\n\n5f2b-07/2-0\n{LATER}\nTwo.\n", "One. Two."),
        ("vtt", f"WEBVTT\n\n1\n{CUE}\nOne.\n\n2\n{LATER}\nTwo.\n", "One. Two."),
        ("vtt", f"WEBVTT\n\n{CUE}\n\nname\n{LATER}\nTwo.\n", "Two."),
        ("vtt", f"WEBVTT\n\n{CUE}\nIt was\n1984\n\n{LATER}\nor\n85", "It was 1984 or 85"),
        ("srt", f"{CUE}\nIt was\n1984\n\n{LATER}\nor\n85", "It was 1984 or 85"),
        ("srt", f"1\n{CUE}\nIt was\n1984\n\n2\n{LATER}\nor\n85\n", "It was 1984 or 85"),
        ("srt", f"1\n{CUE}\nOne\n2\n{LATER}\nTwo\n3\n", "One Two 3"),
        ("srt", f"1\n\n{CUE}\n\nOne\n\n2\n\n{LATER}\n\nTwo\n", "One Two"),
        ("srt", f"1\n{CUE}\nWe are #1, you #2.\n", "We are #1, you #2."),
        ("srt", f"1\n{CUE}\nC# and F# are\n# la la # not.\n# la la #", "C# and F# are not."),
        ("srt", f"1\n{CUE}\nIf a < b then <i>c</i> > d.\n", "If a < b then c > d."),
    ],
)  # fmt: skip
def test_all_of_a_cue_is_spoken_and_nothing_else(
    tmp_path: Path, suffix: str, content: str, spoken: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    for ends in ("\n", "\r\n"):
        path.write_bytes(content.replace("\n", ends).encode())
        assert joined_text(read_subtitles(str(path))) == spoken


@pytest.mark.parametrize("times", ["00:00:03 --> 00:00:04", "3,000 --> 4,000", "0:3.5 -> 0:4"])
@pytest.mark.parametrize("suffix", ["srt", "vtt"])
def test_times_that_cannot_be_read_are_no_text(tmp_path: Path, suffix: str, times: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text(f"WEBVTT\n\n{CUE}\nOne.\n\n{times}\nTwo.\n", "utf-8")
    with pytest.raises(ValueError, match=rf"a\.{suffix}: line 6: expected the times of a cue"):
        read_subtitles(str(path))


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
