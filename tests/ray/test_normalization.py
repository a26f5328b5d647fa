"""Texts that the encode job normalizes, and the record that it leaves of how."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.example import CODEC, ROOT, load_script
from sheen.data import dataset
from sheen.text.normalization import describe
from sheen.text.phonemes import describe as describe_phonemes

SILENT_CODES = [[1] * 12, [1] * 24, [1] * 48]  # a second of what a codec says

encode = load_script(ROOT / "jobs" / "encode.py").main


def test_the_encode_job_writes_spoken_texts_and_says_so(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["It is 10:30.", "four two", "..."]
    lines = [json.dumps({"text": text, "snac_codes": SILENT_CODES}) for text in texts]
    (tmp_path / "codes.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out"
    command = ["--input", str(tmp_path / "codes.jsonl"), "--output", str(output)]
    command += ["--codec", str(CODEC)]
    assert encode([*command, "--language", "en"]) == 0
    rows = pq.read_table(str(output / "rows" / "status=encoded")).to_pylist()
    assert [row["text"] for row in rows] == ["It is ten thirty.", "four two"]
    (rejected,) = pq.read_table(str(output / "rows" / "status=rejected")).to_pylist()
    assert (rejected["reason"], rejected["text"]) == ("no text", "...")
    assert dataset.read_info(str(output)).text_normalization == describe("en")
    capsys.readouterr()
    assert encode(command) == 2
    assert "normalizer was [{" in capsys.readouterr().err
    assert encode([*command, "--language", "en", "--phonemes"]) == 2
    assert "normalizer was [{" in capsys.readouterr().err
    assert encode([*command, "--language", "tlh"]) == 2
    assert "--language tlh: text normalisation: unknown language" in capsys.readouterr().err


def test_the_encode_job_writes_phonemes_and_says_so(ray_cluster: None, tmp_path: Path) -> None:
    texts = ["It is 10:30.", "你好"]
    lines = [json.dumps({"text": text, "snac_codes": SILENT_CODES}) for text in texts]
    (tmp_path / "codes.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out"
    command = ["--input", str(tmp_path / "codes.jsonl"), "--output", str(output)]
    assert encode([*command, "--codec", str(CODEC), "--language", "en-US", "--phonemes"]) == 0
    (row,) = pq.read_table(str(output / "rows" / "status=encoded")).to_pylist()
    assert row["text"] == "ˌɪt ɪz tˈɛn θˈɜɹTi."
    (rejected,) = pq.read_table(str(output / "rows" / "status=rejected")).to_pylist()
    assert (rejected["reason"], rejected["text"]) == ("no text", "你好")
    assert dataset.read_info(str(output)).normalizer == (describe("en"), describe_phonemes("en"))


@pytest.mark.parametrize("language", [[], ["--language", "de"]])
def test_phonemes_of_another_language_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], language: list[str]
) -> None:
    (tmp_path / "codes.jsonl").write_text(json.dumps({"text": "a", "snac_codes": SILENT_CODES}))
    command = ["--input", str(tmp_path / "codes.jsonl"), "--output", str(tmp_path / "out")]
    assert encode([*command, "--codec", str(CODEC), *language, "--phonemes"]) == 2
    assert "--phonemes needs --language en" in capsys.readouterr().err
