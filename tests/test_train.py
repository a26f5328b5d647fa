"""The train job on a local cluster: a checkpoint others open, and a run that is not lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from conftest import CODEC, ROOT, load_script, train_config
from sheen.core import checkpoint, dataset
from sheen.core.codec import load_codec
from sheen.core.model import load_model
from sheen.core.voice import Voice
from sheen.train.data import build_training_set
from sheen.train.job import run as train
from sheen.train.loop import learning_rate


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoint" / "model.safetensors")


def training_set(location: Path, voice: Voice, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "max_tokens": 2048,
        "eval_share": 0.2,
        "eval_rows": 256,
        "seed": 0,
    } | changes
    return build_training_set(str(location), voice.info.token_layout, voice.tokenizer, **arguments)


def test_metrics_say_what_a_user_needs(trained: Path) -> None:
    data, *steps = metrics(trained)
    assert data["event"] == "data"
    assert data["train_utterances"] + data["eval_utterances"] == 16
    assert data["over_length_limit"] == 0
    assert sum(data["length_histogram"]["utterances"]) == 16
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    for row in steps:
        assert row["target_tokens_per_second"] > 0
        assert {"loss", "loss_level_0", "loss_level_1", "loss_level_2", "end_accuracy"} <= set(row)
    assert [row["step"] for row in steps if "eval_loss" in row] == [3, 6]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_bare_transformers_opens_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    script = tmp_path / "open.py"
    script.write_text(
        "import sys\n"
        "sys.modules['sheen'] = None\n"  # import sheen now raises
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('slt: one<audio_start>', return_tensors='pt').input_ids\n"
        "print(ids[0, -1].item(), model(ids).logits.shape[-1])\n"
    )
    done = subprocess.run(
        [sys.executable, script, trained / "checkpoint"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    start_id, rows = map(int, done.stdout.split())
    layout = checkpoint.read_info(trained / "checkpoint").token_layout
    assert start_id == layout.start_id
    assert rows >= layout.first_id + layout.size


def test_the_checkpoint_says_what_serving_needs(trained: Path, encoded: Path) -> None:
    info = checkpoint.read_info(trained / "checkpoint")
    assert info.voices == ["awb", "kal16", "rms", "slt"]
    assert info.sample_rate == 24000
    assert info.codec == dataset.read_info(str(encoded)).codec
    assert load_codec(str(trained / "checkpoint" / "codec")).strides == (4, 2, 1)


def test_training_and_serving_build_the_same_prompt(encoded: Path, voice: Voice) -> None:
    data = training_set(encoded, voice)
    utterances = dataset.read_utterances(str(encoded), data.layout)
    from sheen.core.sampling import Sampling

    for index in range(len(utterances)):
        served = voice.request(
            utterances.texts[index], utterances.speakers[index], Sampling(), max_seconds=1.0
        )
        first, last = data.prompt_offsets[index : index + 2]
        assert list(served.prompt) == data.prompts[first:last].tolist()


def test_utterances_over_the_limit_are_left_out_and_counted(encoded: Path, voice: Voice) -> None:
    everything = training_set(encoded, voice, eval_share=0.0)
    limit = int(sorted(everything.lengths)[7])
    data = training_set(encoded, voice, eval_share=0.0, max_tokens=limit)
    assert data.summary["over_length_limit"] == int((everything.lengths > limit).sum()) > 0
    assert (data.lengths[data.train] <= limit).all()
    for index in data.train:
        row = data.batch(data.train[data.train == index], 0).input_ids[0]
        assert row[-1] == data.layout.end_id, "whole, with its end"
    with pytest.raises(ValueError, match="longer than --max-tokens 16"):
        training_set(encoded, voice, max_tokens=16)


@pytest.mark.parametrize(("rows", "share"), [(1, 0.5), (3, 0.02), (3, 0.99)])
def test_a_split_that_would_be_empty_is_off(
    encoded: Path, voice: Voice, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    rows: int, share: float,
) -> None:  # fmt: skip
    path = tmp_path / "few.jsonl"
    write_jsonl(path, encoded, rows)
    data = training_set(path, voice, eval_share=share)
    if len(data.evaluation) == 0:
        assert "evaluation is off" in caplog.text
        assert len(data.train) == rows
    assert len(data.train) > 0


def write_jsonl(path: Path, encoded: Path, rows: int) -> None:
    table = dataset.read_utterances(str(encoded), checkpoint.TokenLayout(0, 4096, (4, 2, 1)))
    layout = checkpoint.TokenLayout(0, 4096, (4, 2, 1))
    with path.open("w", encoding="utf-8") as file:
        for index in range(rows):
            codes = [level.tolist() for level in layout.deinterleave(table.codes(index))]
            file.write(json.dumps({"text": table.texts[index], "snac_codes": codes}) + "\n")


def test_three_rows_of_codes_train_through_the_command(
    ray_cluster: None, encoded: Path, base: Path, tmp_path: Path
) -> None:
    """JSONL input, an evaluation split that is empty, a model without named voices."""
    write_jsonl(tmp_path / "few.jsonl", encoded, 3)
    main = load_script(ROOT / "jobs" / "train.py").main
    flags = {
        "--data": tmp_path / "few.jsonl", "--output": tmp_path / "out", "--model": base,
        "--codec": CODEC, "--max-steps": 2, "--eval-every": 1,
    }  # fmt: skip
    assert main([str(word) for pair in flags.items() for word in pair]) == 0
    rows = metrics(tmp_path / "out")
    assert rows[0]["eval_utterances"] == 0
    assert "eval_loss" not in rows[-1]
    assert checkpoint.read_info(tmp_path / "out" / "checkpoint").voices == []


def test_two_workers_give_the_losses_of_one_with_twice_the_accumulation(
    encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    config = train_config(encoded, base, tmp_path, num_workers=2, accumulation=1)
    config.cpus_per_worker = 0.5
    train(config)
    for one, two in zip(metrics(trained)[1:], metrics(tmp_path)[1:], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)


def test_a_killed_run_resumes_by_name_and_ends_the_same(
    encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    config = train_config(encoded, base, tmp_path / "out")
    words = [sys.executable, str(ROOT / "jobs" / "train.py")]
    for name, value in config.model_dump(exclude_unset=True, exclude_none=True).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    address = ray.get_runtime_context().gcs_address
    log = tmp_path / "killed.log"
    with log.open("w") as file, subprocess.Popen(
        words, env=os.environ | {"RAY_ADDRESS": address}, stdout=file, stderr=file, cwd=ROOT,
    ) as process:  # fmt: skip
        saved = tmp_path / "out" / "run" / "checkpoint_manager_snapshot.json"
        deadline = time.monotonic() + 200
        while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert saved.exists(), log.read_text()[-3000:]
    assert not (tmp_path / "out" / "checkpoint").exists(), "it was killed before its end"
    # Lines that the killed run wrote after its checkpoint must not stand twice.
    train(config)

    def curve(output: Path) -> list[dict[str, Any]]:
        timed = {"target_tokens_per_second"}
        return [{k: v for k, v in row.items() if k not in timed} for row in metrics(output)]

    assert curve(tmp_path / "out") == curve(trained)
    for name, tensor in weights(trained).items():
        assert torch.equal(tensor, weights(tmp_path / "out")[name]), name


def test_a_run_of_other_settings_is_not_resumed(encoded: Path, base: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"learning_rate was 0\.002, now 0\.5"):
        train(train_config(encoded, base, trained, learning_rate=0.5))


def test_data_of_another_codec_than_the_checkpoint_is_refused(
    encoded: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(encoded, tmp_path / "other")
    info = dataset.read_info(str(encoded))
    info.codec.sha256 = "0" * 64
    dataset.write_info(str(tmp_path / "other"), info)
    with pytest.raises(ValueError, match="encode the recordings with the checkpoint's codec"):
        train(train_config(tmp_path / "other", trained / "checkpoint", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere"}, "no such file or folder"),
        ({"model": "/no/such/model"}, "--model /no/such/model: no such folder"),
        ({"data": "few.jsonl"}, "give --codec"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(
    encoded: Path, base: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    write_jsonl(tmp_path / "few.jsonl", encoded, 1)
    config = train_config(encoded, base, tmp_path / "out")
    for name, value in change.items():
        setattr(config, name, str(tmp_path / value) if name == "data" else value)
    with pytest.raises(ValueError, match=message):
        train(config)


def test_fine_tuning_keeps_layout_and_adds_voices(
    encoded: Path, trained: Path, tmp_path: Path
) -> None:
    before = weights(trained)
    output = tmp_path / "tuned"
    train(train_config(encoded, trained / "checkpoint", output, max_steps=2, save_every=2))
    old = checkpoint.read_info(trained / "checkpoint")
    new = checkpoint.read_info(output / "checkpoint")
    assert new == old
    load_model(output / "checkpoint", new.token_layout)
    for name, tensor in weights(trained).items():
        assert torch.equal(tensor, before[name]), "the old checkpoint is untouched"
    assert any(not torch.equal(weights(output)[name], before[name]) for name in before)
    assert metrics(output)[1]["loss"] < metrics(trained)[1]["loss"], "it starts from what it knows"


def test_the_schedule_warms_up_and_decays() -> None:
    rates = [learning_rate(step, 1.0, 10, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
