"""Weights that mean nothing for the codec or the run are refused before a worker starts."""

import re
from pathlib import Path

import pytest

from helpers.example import CODEC, ROOT, load_script

LINE = '{"text": "one", "snac_codes": [[1], [1, 2], [1, 2, 3, 4]]}\n'

main = load_script(ROOT / "jobs" / "train.py").main


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--level-weights", "3,1"], "--level-weights 3,1: expected 3 weights, one for each level"),
        (["--level-weights", "1,1,1,1"], "--level-weights 1,1,1,1: expected 3 weights"),
        (["--level-weights", "0,0,0"], "--level-weights 0,0,0: .* one of them above 0"),
        (["--level-weights", "3,-1,1"], "level_weights.*greater than or equal to 0"),
        (["--level-weights-steps", "9"], "--level-weights-steps needs --level-weights"),
        (["--guided-attention-steps", "9"], "--guided-attention-steps needs --guided-attention"),
        (["--guided-attention", "-1"], "guided_attention.*greater than or equal to 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    lines, output = tmp_path / "codes.jsonl", tmp_path / "out"
    lines.write_text(LINE, "utf-8")
    given = {"--data": lines, "--output": output, "--model": base, "--codec": CODEC}
    words = [str(word) for pair in given.items() for word in pair]
    assert main([*words, *flags]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, said), said
    assert not output.exists()
