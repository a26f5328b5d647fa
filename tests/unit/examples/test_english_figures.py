"""The figures of the English example: what they take from runs and recordings, and refuse."""

import json
from pathlib import Path

import pytest

from helpers.example import DEMO, ENGLISH, load_script

curves = load_script(ENGLISH / "training_curves.py")
spectrograms = load_script(ENGLISH / "spectrograms.py")


def run_of(folder: Path, losses: dict[int, float | None]) -> Path:
    """A run's metrics: a line per step, with a held-out loss where there is one."""
    folder.mkdir()
    lines = [
        {"event": "step", "step": step}
        | ({} if loss is None else {"eval_loss": loss, "eval_text_gain_level_0": 1.0})
        for step, loss in losses.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"event": "start"}, *lines])
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_a_run_that_continues_another_begins_at_its_last_token(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "first", {100: 5.0, 200: 4.5, 250: None}),
        run_of(tmp_path / "second", {100: 4.0}),
    ]
    found = [(tokens, line["eval_loss"]) for tokens, line in curves.evaluations(runs, 8192)]
    assert found == [(0.8192, 5.0), (1.6384, 4.5), (350 * 8192 / 1e6, 4.0)]
    assert curves.main([*map(str, runs), "--output", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("losses", [None, {}, {10: None}], ids=["no file", "no steps", "no losses"])
def test_runs_without_an_evaluation_are_named(
    tmp_path: Path, losses: dict[int, float | None] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run" if losses is None else run_of(tmp_path / "run", losses)
    with pytest.raises(SystemExit) as ended:
        curves.main([str(folder), "--output", str(tmp_path / "out.png")])
    assert ended.value.code == 2
    assert str(folder) in capsys.readouterr().err


def test_a_recording_is_found_by_its_id_and_a_missing_one_named() -> None:
    manifest = DEMO / "af_bella.jsonl"
    first = json.loads(manifest.read_text().splitlines()[0])
    text, file = spectrograms.find_row(manifest, first["id"])
    assert text == first["text"]
    assert file == (DEMO / first["audio"]).read_bytes()
    with pytest.raises(ValueError, match=r"af_bella\.jsonl: no recording 'none'"):
        spectrograms.find_row(manifest, "none")


def test_a_speaker_is_a_checkpoint_and_a_voice() -> None:
    assert spectrograms.speaker_and_voice("runs/a=b/checkpoint=heart") == (
        Path("runs/a=b/checkpoint"),
        "heart",
    )
    for text in ("runs/demo", "=heart", "runs/demo="):
        with pytest.raises(spectrograms.argparse.ArgumentTypeError, match="CHECKPOINT=VOICE"):
            spectrograms.speaker_and_voice(text)
