"""The figures of the English example: what they take from runs and recordings, and refuse."""

import json
from pathlib import Path

import pytest

from helpers.example import DEMO, ENGLISH, load_script

curves = load_script(ENGLISH / "training_curves.py")
spectrograms = load_script(ENGLISH / "spectrograms.py")


LEVELS = {"eval_loss": "eval_text_gain_level_0", "eval_mel_distance_db": "eval_perplexity_level_0"}


def run_of(
    folder: Path, steps: dict[int, tuple[float | None, float]], measure: str = "eval_loss"
) -> Path:
    """A run's metrics, which was to take 1,000 steps: a line for each step, with what was held out
    where there is anything, and the seconds that a step took since the line before."""
    folder.mkdir()
    lines = [
        {"event": "step", "step": step, "steps": 1000, "seconds_left": (1000 - step) * pace}
        | ({} if held_out is None else {measure: held_out, LEVELS[measure]: 1.0})
        for step, (held_out, pace) in steps.items()
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"event": "start"}, *lines])
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_a_run_that_continues_another_begins_at_its_last_step_and_hour(tmp_path: Path) -> None:
    runs = [
        run_of(tmp_path / "first", {100: (5.0, 36), 200: (4.5, 18), 250: (None, 36)}),
        run_of(tmp_path / "second", {100: (4.0, 72), 1000: (3.0, 0)}),
    ]
    found = curves.read_runs(runs)
    assert [line["eval_loss"] for line in found.evaluations] == [5.0, 4.5, 4.0, 3.0]
    assert found.steps == [100, 200, 350, 1250]
    # The last step tells no pace; it is as quick as those before.
    assert [found.hours_at(step) for step in (50, *found.steps)] == [0.5, 1.0, 1.5, 4.0, 22.0]


@pytest.mark.slow
@pytest.mark.parametrize("measure", LEVELS)
def test_runs_of_voices_and_of_codecs_are_drawn(
    tmp_path: Path, measure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", {100: (5.0, 36), 200: (4.0, 36)}, measure)
    drawn = []
    for more in ([], ["--over", "tokens"], ["--wer", "150=20.5", "200=4"]):
        output = tmp_path / "out.png"
        assert curves.main([str(run), "--output", str(output), *more]) == 0
        drawn.append(output.read_bytes())
        assert drawn[-1].startswith(b"\x89PNG")
    assert len(set(drawn)) == 3
    assert "2 evaluations, 200 steps in 2.00 hours" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [None, {}, {10: (None, 1)}], ids=["no file", "no steps", "none"])
def test_runs_without_an_evaluation_are_named(
    tmp_path: Path,
    steps: dict[int, tuple[float | None, float]] | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run" if steps is None else run_of(tmp_path / "run", steps)
    with pytest.raises(SystemExit) as ended:
        curves.main([str(folder), "--output", str(tmp_path / "out.png")])
    assert ended.value.code == 2
    assert str(folder) in capsys.readouterr().err


def test_what_cannot_be_placed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path / "run", {100: (5.0, 36)})
    codec = run_of(tmp_path / "codec", {100: (5.0, 36)}, "eval_mel_distance_db")
    short = run_of(tmp_path / "short", {1000: (5.0, 36)})
    for words, message in (
        ([run, "--wer", "101=5"], "--wer 101: the runs have 100 steps"),
        ([run, "--wer", "5%"], "expected STEP=PERCENT"),
        ([run, codec], "evaluations of voices and of codecs"),
        ([short], f"{short}: its only line does not tell"),
    ):
        with pytest.raises(SystemExit):
            curves.main([*map(str, words), "--output", str(tmp_path / "out.png")])
        assert message in capsys.readouterr().err


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
