"""English training without Ray: packs are lossless, steps are the train job's, a run resumes."""

import json
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from helpers.example import CODEC, ENGLISH, ROOT
from helpers.random_codes import write_codes
from helpers.training import train_config
from sheen.codec.snac import open_codec
from sheen.engine.voice import load_voice
from sheen.lm.checkpoint import read_info
from sheen.train import loop, trainer
from sheen.train.data import build_training_set
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.settings import learning_rate
from sheen.train.trainer import SpeechTrainer

sys.path.append(str(ENGLISH))

import code_pack
import gpu_budget
import pack_codes
import train_on_gpu

PART_MB = 1.0
ABSENT = ("ray", "pydantic", "pydantic_settings", "snac", "av", "soundfile", "sentencex", "fastapi")
"""Packages that a machine with torch and transformers need not have."""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codes(tmp_path_factory.mktemp("codes") / "codes.jsonl")


def pack(lines: Path, base: Path, output: Path, *more: str) -> list[Path]:
    words = ["--data", str(lines), "--codec", str(CODEC), "--base", str(base)]
    words += ["--output", str(output), "--max-tokens", "128", "--eval-share", "0.2"]
    words += ["--eval-rows", "8", "--part-mb", "0.1", *more]
    assert pack_codes.main(words) == 0
    return sorted(output.parent.glob(f"{output.name}.pack-*"))


@pytest.fixture(scope="module")
def packed(lines: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pack(lines, base, tmp_path_factory.mktemp("pack") / "codes")


def train(packed: list[Path], base: Path, output: Path, *more: str) -> int:
    words = ["--codes", *map(str, packed), "--base", str(base), "--output", str(output)]
    words += ["--device", "cpu", "--batch-tokens", "128", "--accumulation", "2", "--warmup-steps"]
    words += ["1", "--eval-seconds", "0", "--part-mb", str(PART_MB), *more]
    result = train_on_gpu.main(words)
    assert isinstance(result, int)
    return result


WEIGHTED = (
    *("--history-noise", "0.5", "--level-weights", "3,1,0.25", "--level-weights-steps", "3"),
    *("--guided-attention", "0.5", "--guided-attention-steps", "3"),
)
TIMED = ("tokens_per_second", "target_tokens_per_second", "seconds_left", "minutes")


def rows_of(output: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def half_weights(output: Path) -> dict[str, Tensor]:
    found = {}
    for path in (output / "checkpoint").glob("*.safetensors"):
        found |= load_file(path)
    return found


# Packs


@pytest.mark.parametrize("bits", [1, 5, 12, 15])
def test_codes_in_fewer_bits_come_back(bits: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, 1001).astype(np.int16)
    packed = code_pack.squeeze(codes, bits)
    assert len(packed) == -(-1001 * bits // 8)
    assert np.array_equal(code_pack.expand(packed, 1001, bits), codes)


def test_a_pack_is_the_training_set_that_the_train_job_would_have(
    packed: list[Path], lines: Path, base: Path, checkpoint: Path
) -> None:
    layout = read_info(checkpoint).token_layout
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    expected, properties = build_training_set([str(lines)], layout, tokenizer, 128, 0.2, 8, seed=0)
    assert len(packed) > 1
    found = code_pack.read_pack(packed)
    assert found.data.layout == layout
    assert found.data.summary == expected.summary
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            read = getattr(found.data, name)
            assert np.array_equal(read, value), name
            assert read.dtype == value.dtype, name
    assert len(expected.evaluation)
    assert found.data.swapped_prompts.keys() == expected.swapped_prompts.keys()
    for index, prompt in expected.swapped_prompts.items():
        assert np.array_equal(found.data.swapped_prompts[index], prompt)
    assert found.info["voices"] == properties.voices == ["ann"]
    assert found.info["max_chunk_chars"] == properties.max_chunk_chars


def test_a_pack_without_one_of_its_parts_is_refused(packed: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"--codes .*-2 .*: no whole pack"):
        code_pack.read_pack(packed[1:])


def test_two_packs_are_not_taken_for_the_last_of_them(packed: list[Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.write_bytes(code_pack.read_parts(packed))
    code_pack.read_pack([whole])
    with pytest.raises(ValueError, match=r"no whole pack of codes \(\d+ bytes before it\)"):
        code_pack.read_pack([whole, *packed])


def test_parts_of_an_earlier_pack_do_not_stay(lines: Path, base: Path, tmp_path: Path) -> None:
    many = pack(lines, base, tmp_path / "codes", "--part-mb", "0.01")
    assert len(many) >= 10
    other = tmp_path / "codes-of-others.pack-1"
    other.touch()
    assert len(pack(lines, base, tmp_path / "codes", "--part-mb", "10")) == 1
    assert other.exists()


@pytest.mark.slow
def test_a_pack_holds_as_many_hours_and_rows_as_asked_for(
    lines: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = code_pack.read_pack(pack(lines, base, tmp_path / "some", "--rows", "10")).data
    assert len(some.lengths) == 10
    hours = 3 / 3600
    few = code_pack.read_pack(pack(lines, base, tmp_path / "few", "--hours", str(hours))).data
    assert 0 < len(few.frames) * 2048 / 24000 <= 3
    assert len(few.lengths) < 24
    assert "MB an hour: a file of 0.1 MB holds" in capsys.readouterr().out


def test_a_pack_with_references_has_the_rows_of_the_train_job(
    lines: Path, base: Path, checkpoint: Path, tmp_path: Path
) -> None:
    found = code_pack.read_pack(pack(lines, base, tmp_path / "some", "--reference-share", "0.5"))
    arguments = (read_info(checkpoint).token_layout, AutoTokenizer.from_pretrained(str(base)))
    expected, _ = build_training_set(
        [str(lines)], *arguments, 128, 0.2, 8, seed=0, reference_share=0.5
    )
    items = expected.items(0, 1)
    assert np.array_equal(found.data.items(0, 1), items)
    assert (items >= len(expected.frame_offsets) - 1).any()
    assert found.data.batch(items, 0).input_ids.equal(expected.batch(items, 0).input_ids)
    assert found.info["reference"] == {"form": "one-turn"}


# Steps


@pytest.mark.slow
def test_the_steps_are_those_of_the_train_job(
    packed: list[Path],
    lines: Path,
    base: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the bit, from the base on: new rows, packing, noise, weights, rates, evaluation."""
    monkeypatch.setattr(loop, "WorkerGroup", lambda: Collectives(torch.device("cpu")))
    monkeypatch.setattr(trainer.ray, "get", lambda item: item)
    info = read_info(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    arguments = (info.token_layout, tokenizer, 128, 0.2, 8)
    data, _ = build_training_set([str(lines)], *arguments, seed=0)
    fields: dict[str, Any] = {
        "batch_tokens": 128, "accumulation": 2, "max_tokens": 128, "max_steps": 4,
        "learning_rate": 1e-3, "warmup_steps": 1, "eval_every": 1, "trackers": [],
        "history_noise": 0.5, "level_weights": [3.0, 1.0, 0.25], "level_weights_steps": 3,
        "guided_attention": 0.5, "guided_attention_steps": 3,
    }  # fmt: skip
    config = train_config(lines, base, tmp_path / "job", **fields)
    codec, parts = open_codec(str(CODEC))
    job = SpeechTrainer(
        config.model_dump(mode="json"),
        cast(Any, data),
        info,
        str(base),
        cast(Any, (parts, codec.state_dict())),
        [],
        str(tmp_path / "job"),
        cast(Any, Never()),
    )
    job.run()
    assert train(packed, base, tmp_path / "gpu", "--max-steps", "4", *WEIGHTED) == 0
    expected, found = rows_of(tmp_path / "job"), rows_of(tmp_path / "gpu")
    assert len(found) == 5
    assert found == expected
    found_weights = half_weights(tmp_path / "gpu")
    for name, part in job.model.lm.state_dict().items():
        if name in found_weights:  # a tied table has one name
            assert torch.equal(found_weights[name], part.bfloat16()), name
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= found_weights.keys()


class Never:
    """A run's messages: none."""

    def watched(self) -> "Never":
        return self

    def stop_requested(self) -> bool:
        return False


@pytest.mark.slow
def test_a_stopped_run_resumes_and_ends_as_one_that_was_not(
    packed: list[Path],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(packed, base, tmp_path / "whole", "--max-steps", "4", *WEIGHTED) == 0
    with monkeypatch.context() as patch:
        run = train_on_gpu.Run.train
        stops: Iterator[bool] = iter([False, False, True])
        patch.setattr(train_on_gpu.Run, "train", lambda self, _: run(self, lambda: next(stops)))
        assert train(packed, base, tmp_path / "parts", "--max-steps", "4", *WEIGHTED) == 0
    assert "stopped after step 2, saved" in capsys.readouterr().out
    assert train(packed, base, tmp_path / "parts", "--max-steps", "4", *WEIGHTED) == 0
    assert rows_of(tmp_path / "parts") == rows_of(tmp_path / "whole")
    whole, parts = half_weights(tmp_path / "whole"), half_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)

    # What travels is small: no file is over the limit but one of a single tensor.
    state = sorted((tmp_path / "parts" / "state").iterdir())
    assert len(state) > 3
    assert all(path.name == "state.json" or "step-00000004" in path.name for path in state)
    assert max(path.stat().st_size for path in state) <= PART_MB * 1e6
    assert len(list((tmp_path / "parts" / "checkpoint").glob("*.safetensors"))) > 1

    assert train(packed, base, tmp_path / "parts", "--max-steps", "6") == 2
    said = capsys.readouterr().err
    assert "history_noise was 0.5, now 0.0" in said
    assert "or another --output" in said
    rounded = ("--max-steps", "6", "--precision", "bfloat16", *WEIGHTED)
    assert train(packed, base, tmp_path / "parts", *rounded) == 2
    assert "precision was float32, now bfloat16" in capsys.readouterr().err
    state[1].unlink()
    assert train(packed, base, tmp_path / "parts", "--max-steps", "6", *WEIGHTED) == 2
    assert f"{state[1]} is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_result_is_a_checkpoint_that_speaks_and_can_be_trained_further(
    packed: list[Path], base: Path, tmp_path: Path
) -> None:
    assert train(packed, base, tmp_path, "--max-steps", "1") == 0
    more = ("--max-steps", "1", "--learning-rate", "1e-9")
    assert train(packed, tmp_path / "checkpoint", tmp_path / "more", *more) == 0
    before, after = rows_of(tmp_path)[-1], rows_of(tmp_path / "more")[-1]
    assert after["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-3)
    shutil.copytree(CODEC, tmp_path / "checkpoint" / "codec")
    voice = load_voice(str(tmp_path / "checkpoint"))
    assert voice.info.voices == ["ann"]
    assert {part.dtype for part in half_weights(tmp_path).values()} == {torch.bfloat16}


def test_a_base_without_weights_starts_as_make_base_draws_them(
    packed: list[Path], base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    read = code_pack.read_pack(packed)
    drawn, _ = train_on_gpu.open_model(tmp_path / "small", read, seed=0)
    expected, _ = train_on_gpu.open_model(base, read, seed=0)
    for name, part in expected.state_dict().items():
        assert torch.equal(drawn.state_dict()[name], part), name


def test_a_base_that_is_not_there_is_named(
    packed: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(packed, tmp_path / "none", tmp_path / "run", "--max-steps", "1") == 2
    assert f"--base {tmp_path / 'none'}: no folder of a model" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# The clock


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_the_schedule_ends_with_the_time_whatever_the_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(gpu_budget, "time", clock)
    budget = gpu_budget.Budget(None, 60.0)
    step, rates = 0, []
    while not budget.is_over(step):
        rates.append(learning_rate(step, 1.0, 5, budget.total(step)))
        clock.now += 20.0 if step == 0 else 0.5 if step < 40 else 0.25  # compiles, then speeds up
        step += 1
        budget.count_step()
    assert step == 122
    assert rates[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert np.all(np.diff(rates[5:]) < 0)
    assert rates[-1] == pytest.approx(0.1, abs=0.005)


def test_a_second_part_has_the_time_that_is_left_and_the_pace_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(gpu_budget, "time", clock)
    first = gpu_budget.Budget(None, 60.0)
    for _ in range(11):
        clock.now += 2.0
        first.count_step()
    assert first.total(11) == 11 + round(38 * 11 / 20)
    clock.now += 1000.0
    state = first.state()
    assert state["spent"] == 1022.0
    second = gpu_budget.Budget(None, 2000.0, {"spent": 22.0, "stepping": 20.0})
    assert second.spent() == 22.0
    clock.now += 8.0
    assert second.stepping() == 20.0, "until its first step is done"
    assert second.total(11) == 11 + round(1970 * 11 / 20)


# A machine that has torch and transformers


@pytest.mark.slow
def test_the_script_trains_where_ray_and_the_jobs_packages_are_missing(
    packed: list[Path], base: Path, tmp_path: Path
) -> None:
    script = textwrap.dedent(
        f"""
        import runpy, sys

        class Hiding:
            def __init__(self, finder):
                self.finder = finder
            def __getattr__(self, name):
                return getattr(self.finder, name)
            def find_spec(self, name, *more):
                if name.partition(".")[0] in {ABSENT!r}:
                    return None
                return self.finder.find_spec(name, *more)

        sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
        for name in {ABSENT!r}:
            assert name not in sys.modules
            try:
                __import__(name)
            except ImportError:
                continue
            raise AssertionError(name + " is there")
        sys.argv = {[
            "train_on_gpu.py", "--codes", *map(str, packed), "--base", str(base), "--output",
            str(tmp_path), "--device", "cpu", "--batch-tokens", "128", "--max-steps", "2",
            "--eval-seconds", "0",
        ]!r}
        sys.path.insert(0, {str(ENGLISH)!r})
        runpy.run_path({str(ENGLISH / "train_on_gpu.py")!r}, run_name="__main__")
        """
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *steps = rows_of(tmp_path)
    assert first["event"] == "data"
    assert [row["step"] for row in steps] == [1, 2]
    gains = {f"eval_text_gain_level_{level}" for level in range(3)}
    assert all(gains | {"loss", "eval_loss"} <= row.keys() for row in steps)
    assert read_info(tmp_path / "checkpoint").voices == ["ann"]
