"""Texts that the encode job normalizes, and the record that it leaves of how."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.example import CODEC, ROOT, load_script
from helpers.tasks import as_tasks
from sheen.data import dataset
from sheen.encode.stages import EncodeWorker
from sheen.text.normalization import describe
from sheen.text.phonemes import describe as describe_phonemes

SILENT_CODES = [[1] * 12, [1] * 24, [1] * 48]  # a second of what a codec says

encode = load_script(ROOT / "jobs" / "encode.py").main


def test_the_encode_job_writes_phonemes_of_spoken_texts_and_says_so(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["It is 10:30.", "four <laugh> two", "...", "你好"]
    lines = [json.dumps({"text": text, "snac_codes": SILENT_CODES}) for text in texts]
    lines[1] = json.dumps(json.loads(lines[1]) | {"instruction": "At 5:30, <loud>"})
    (tmp_path / "codes.jsonl").write_text("\n".join(lines))
    output = tmp_path / "out"
    command = ["--input", str(tmp_path / "codes.jsonl"), "--output", str(output)]
    command += ["--codec", str(CODEC)]
    flags = ["--language", "en-US", "--phonemes", "--tags", "laugh", "--num-workers", "1"]
    with as_tasks(EncodeWorker):
        assert encode([*command, *flags]) == 0
    rows = pq.read_table(str(output / "rows" / "status=encoded")).to_pylist()
    assert [row["text"] for row in rows] == ["ˌɪt ɪz tˈɛn θˈɜɹTi.", "fˈɔɹ <laugh> tˈu"]
    assert [row["instruction"] for row in rows] == [None, "At 5:30, <loud>"]  # as it is written
    rejected = pq.read_table(str(output / "rows" / "status=rejected")).to_pylist()
    assert [(row["reason"], row["text"]) for row in rejected] == [
        ("no text", "..."), ("no text", "你好")
    ]  # fmt: skip
    info = dataset.read_info(str(output))
    assert info.normalizer == (describe("en"), describe_phonemes("en"))
    assert info.tags == ["<laugh>"]
    capsys.readouterr()
    for words in ([], ["--language", "en"]):
        assert encode([*command, *words]) == 2
        assert "normalizer was [{" in capsys.readouterr().err
    assert encode([*command, "--language", "tlh"]) == 2
    assert "--language tlh: text normalization: unknown language" in capsys.readouterr().err


@pytest.mark.parametrize("language", [[], ["--language", "de"]])
def test_phonemes_of_another_language_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], language: list[str]
) -> None:
    (tmp_path / "codes.jsonl").write_text(json.dumps({"text": "a", "snac_codes": SILENT_CODES}))
    command = ["--input", str(tmp_path / "codes.jsonl"), "--output", str(tmp_path / "out")]
    assert encode([*command, "--codec", str(CODEC), *language, "--phonemes"]) == 2
    assert "--phonemes needs --language en" in capsys.readouterr().err
