"""The train job on a local cluster: a checkpoint others open, and a run that is not lost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from helpers import orpheus
from helpers.example import CODEC, ROOT, VOICE, VOICES, load_script
from helpers.recogniser import tiny_en
from helpers.resident import Resident
from helpers.training import metrics, train_config, weights
from sheen.codec.snac import load_codec
from sheen.data import dataset
from sheen.data.prompts import Prompt
from sheen.engine.voice import Voice, load_voice
from sheen.lm import checkpoint
from sheen.lm.model_files import load_model
from sheen.text.normalization import NemoStep
from sheen.text.phonemes import PhonemeStep
from sheen.text.steps import NfcSpaceStep, NormalizerStep
from sheen.train.data import build_training_set, common_length
from sheen.train.evaluation import eval_prompts
from sheen.train.job import run as train

ENGLISH = NemoStep(version="0.9", language="en")
PHONEMES = PhonemeStep(version="0.9", language="en")


def training_set(location: Path, voice: Voice, *more: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "max_tokens": 2048,
        "eval_share": 0.2,
        "eval_rows": 256,
        "seed": 0,
    } | changes
    locations = [str(path) for path in (location, *more)]
    return build_training_set(locations, voice.info.token_layout, voice.tokenizer, **arguments)[0]


def test_metrics_say_what_a_user_needs(trained: Path) -> None:
    data, *steps = metrics(trained)
    assert data["event"] == "data"
    assert data["train_utterances"] + data["eval_utterances"] == 16
    assert data["over_length_limit"] == 0
    assert sum(data["length_histogram"]["utterances"]) == 16
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    for row in steps:
        assert row["tokens_per_second"] > row["target_tokens_per_second"] > 0
        assert {"loss", "loss_level_0", "loss_level_1", "loss_level_2", "end_accuracy"} <= set(row)
    assert [row["step"] for row in steps if "eval_loss" in row] == [3, 6]
    gains = {f"eval_text_gain_level_{level}" for level in range(3)}
    assert [row["step"] for row in steps if gains <= set(row)] == [3, 6]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_bare_transformers_opens_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    script = tmp_path / "open.py"
    script.write_text(
        "import sys\n"
        "sys.modules['sheen'] = None\n"  # import sheen now raises
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = tokenizer('heart: one<audio_start>', return_tensors='pt').input_ids\n"
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
    assert info.voices == sorted(VOICES)
    assert info.sample_rate == 24000
    assert info.codec == dataset.read_info(str(encoded)).codec
    assert load_codec(str(trained / "checkpoint" / "codec")).strides == (4, 2, 1)


def test_the_checkpoint_says_how_long_texts_take(trained: Path, encoded: Path) -> None:
    info = checkpoint.read_info(trained / "checkpoint")
    assert list(info.duration_model) == info.voices
    read = dataset.read_utterances(str(encoded), info.token_layout)
    for voice, line in info.duration_model.items():
        own = [index for index, speaker in enumerate(read.speakers) if speaker == voice]
        frames = np.array([len(read.codes(index)) for index in own])
        characters = np.array([len(read.texts[index]) for index in own])
        expected = line.base_frames + line.frames_per_char * characters
        assert expected.sum() == pytest.approx(frames.sum(), rel=1e-3)
        assert line.frames_per_char > 0
        assert abs(expected - frames).max() < 0.3 * frames.mean()


def test_the_checkpoint_says_how_long_its_texts_were(trained: Path, encoded: Path) -> None:
    info = checkpoint.read_info(trained / "checkpoint")
    texts = dataset.read_utterances(str(encoded), info.token_layout).texts
    assert info.max_chunk_chars in {len(text) for text in texts}
    assert common_length(["a"] * 990 + ["a" * 9] * 10) == 1
    assert common_length(["a"] * 980 + ["a" * 9] * 20) == common_length(["a" * 9]) == 9


def test_training_and_serving_build_the_same_prompt(encoded: Path, voice: Voice) -> None:
    data = training_set(encoded, voice)
    utterances = dataset.read_utterances(str(encoded), data.layout)
    from sheen.engine.types import Sampling

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
        row = data.batch(np.array([index]), 0).input_ids[0]
        assert len(row) == data.lengths[index]
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
    resident: Resident, encoded: Path, base: Path, tmp_path: Path
) -> None:
    """JSONL input, an evaluation split that is empty, a model without named voices."""
    write_jsonl(tmp_path / "few.jsonl", encoded, 3)
    first, *others = (tmp_path / "few.jsonl").read_text("utf-8").splitlines()
    first = json.dumps(json.loads(first) | {"instruction": "loud"})
    (tmp_path / "few.jsonl").write_text("\n".join([first, *others]), "utf-8")
    main = load_script(ROOT / "jobs" / "train.py").main
    flags = {
        "--data": tmp_path / "few.jsonl", "--output": tmp_path / "out", "--model": base,
        "--codec": CODEC, "--max-steps": 2, "--eval-every": 1, "--tags": "laugh",
    }  # fmt: skip
    assert resident.train(main, [str(word) for pair in flags.items() for word in pair]) == 0
    rows = metrics(tmp_path / "out")
    assert rows[0]["eval_utterances"] == 0
    assert "eval_loss" not in rows[-1]
    info = checkpoint.read_info(tmp_path / "out" / "checkpoint")
    assert info.voices == []
    assert info.duration_model.keys() == {""}
    assert info.tags == ["<laugh>"]
    assert info.instructions
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "checkpoint")
    assert tokenizer("<laugh>")["input_ids"] == [info.layout.start_id - 1]


@pytest.mark.soak  # test_never_lost.py has some steps of two workers
def test_two_workers_give_the_losses_of_one_with_twice_the_accumulation(
    encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    config = train_config(encoded, base, tmp_path, num_workers=2, accumulation=1)
    config.cpus_per_worker = 0.5
    train(config)
    for one, two in zip(metrics(trained)[1:], metrics(tmp_path)[1:], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)


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


def test_data_of_two_codecs_is_refused(encoded: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(encoded, tmp_path / "other")
    info = dataset.read_info(str(encoded))
    info.codec.sha256 = "0" * 64
    dataset.write_info(str(tmp_path / "other"), info)
    config = train_config(encoded, base, tmp_path / "out")
    config.data.append(str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"--data .*other was encoded with another codec .*000000"):
        train(config)


def normalized(encoded: Path, folder: Path, *steps: NormalizerStep) -> Path:
    """The dataset, as if its texts had been normalized."""
    shutil.copytree(encoded, folder)
    info = dataset.read_info(str(encoded))
    info.normalizer = steps
    dataset.write_info(str(folder), info)
    return folder


def test_texts_of_two_normalizations_are_refused(
    encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    english = normalized(encoded, tmp_path / "english", ENGLISH)
    config = train_config(encoded, base, tmp_path / "out")
    config.data.append(str(english))
    with pytest.raises(ValueError, match=r"english has texts normalized as 'en'.*encode both with"):
        train(config)
    taught = tmp_path / "taught"
    shutil.copytree(trained / "checkpoint", taught)
    info = checkpoint.read_info(taught).model_copy(update={"normalizer": (ENGLISH,)})
    checkpoint.write_info(taught, info)
    with pytest.raises(ValueError, match=r"trained on texts normalized as 'en'.* --language en$"):
        train(train_config(encoded, taught, tmp_path / "out"))
    info = info.model_copy(update={"normalizer": (ENGLISH, PHONEMES, NfcSpaceStep())})
    checkpoint.write_info(taught, info)
    for data in (encoded, english):  # letters would be read as phonemes
        with pytest.raises(ValueError, match=r"trained on .*, as phonemes of .* --phonemes$"):
            train(train_config(data, taught, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_several_datasets_are_trained_on_as_one(
    encoded: Path, voice: Voice, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "few.jsonl", encoded, 2)
    alone = training_set(encoded, voice, eval_share=0.0)
    both = training_set(encoded, voice, tmp_path / "few.jsonl", eval_share=0.0)
    first, more = len(alone.lengths), len(both.lengths) - len(alone.lengths)
    assert more == 2
    assert both.train.tolist() == list(range(first + 2))
    for index in range(first):
        (one, other) = (data.batch(np.array([index]), 0).input_ids for data in (alone, both))
        assert torch.equal(one, other)
    # The file names no speaker: of its rows the codes are those of the folder's first two.
    for index in range(2):
        added = both.batch(np.array([first + index]), 0).input_ids[0].tolist()
        whole = both.batch(np.array([index]), 0).input_ids[0].tolist()
        start = both.layout.start_id
        assert added[added.index(start) :] == whole[whole.index(start) :]


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
        setattr(config, name, [str(tmp_path / value)] if name == "data" else value)
    with pytest.raises(ValueError, match=message):
        train(config)


def test_fine_tuning_keeps_layout_and_adds_voices(
    resident: Resident, encoded: Path, trained: Path, tmp_path: Path
) -> None:
    before = weights(trained)
    output = tmp_path / "tuned"
    resident.train(
        train, train_config(encoded, trained / "checkpoint", output, max_steps=2, save_every=2)
    )
    old = checkpoint.read_info(trained / "checkpoint")
    new = checkpoint.read_info(output / "checkpoint")
    assert new == old
    load_model(output / "checkpoint", new.token_layout)
    for name, tensor in weights(trained).items():
        assert torch.equal(tensor, before[name]), "the old checkpoint is untouched"
    assert any(not torch.equal(weights(output)[name], before[name]) for name in before)
    assert metrics(output)[1]["loss"] < metrics(trained)[1]["loss"], "it starts from what it knows"


def test_the_best_model_is_the_one_of_the_lowest_evaluation_loss(
    trained: Path, encoded: Path, voice: Voice
) -> None:
    best = min((row for row in metrics(trained) if "eval_loss" in row), key=eval_loss)
    assert json.loads((trained / "run" / "checkpoints.json").read_text())["best"] == (
        f"best-{best['step']:08d}"
    )
    data = training_set(encoded, voice)
    model = load_voice(str(trained / "best")).model
    sums = model(data.batch(data.evaluation, 0))
    assert float(sums.loss.sum() / sums.count.sum()) == pytest.approx(best["eval_loss"], abs=1e-4)


def eval_loss(row: dict[str, Any]) -> float:
    return float(row["eval_loss"])


def test_a_dry_run_says_what_a_run_would_cost_and_writes_nothing(
    resident: Resident, encoded: Path, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    figures = resident.train(train, train_config(encoded, base, tmp_path / "out", dry_run=True))
    assert not (tmp_path / "out").exists()
    assert figures["steps"] == 6
    assert figures["peak_memory_gb"] > 0
    said = capfd.readouterr().out
    assert "<audio_start>" in said
    assert "<audio_end>" in said
    first = next(line for line in said.splitlines() if "<audio_start>" in line)
    assert "loss" not in first, "the start is given, not learned"
    assert "peak memory" in said


def test_prompts_are_spoken_and_judged(
    resident: Resident, encoded: Path, trained: Path, tmp_path: Path
) -> None:
    """From the trained checkpoint, with adapters, in bfloat16, as a Llama: one run for all."""
    prompts = tmp_path / "prompts.jsonl"
    lines = (
        f'{{"text": "one two", "speaker": "{VOICE}"}}\n{{"text": "six", "speaker": "af_aoede"}}\n'
    )
    prompts.write_text(lines)
    output = tmp_path / "out"
    resident.train(
        train,
        train_config(
            encoded, trained / "checkpoint", output, max_steps=2, save_every=2, eval_every=2,
            eval_prompts=str(prompts), asr=tiny_en(),
            best_metric="eval_wer", half=True, lora_rank=2,
        )
    )  # fmt: skip
    last = metrics(output)[-1]
    assert 0.0 <= last["eval_ended_with_eos"] <= 1.0
    assert last["eval_wer"] > 0.0
    names = {path.name for path in (output / "samples" / "step-000002").iterdir()}
    assert names == {f"prompt-01-{VOICE}.wav", "prompt-02-af_aoede.wav"}
    for name, tensor in weights(output).items():
        assert tensor.dtype == torch.bfloat16, name
        assert "lora" not in name
    assert set(weights(output)) == set(weights(trained)), "merged"
    load_voice(str(output / "best"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "it holds no prompts"),
        ("one two", "line 1: not JSON"),
        ('{"text": "one", "speaker": "heart"}\n{"text": 3}', "line 2: expected an object"),
        ('{"text": "one", "speaker": "nobody"}', "'nobody', the model's voices are af_aoede"),
        ('{"text": "...", "speaker": "heart"}', "line-1: the text has no words"),
    ],
)
def test_prompts_that_cannot_be_spoken_are_named(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines)
    with pytest.raises(ValueError, match=f"^--eval-prompts {path}.*{message}"):
        eval_prompts(str(path), ["af_aoede", "heart"])


def test_prompts_are_for_the_voices_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"id": "a", "text": "one", "speaker": "heart"}\n{"text": "two", "speaker": "af_aoede"}'
    )
    named = [Prompt("a", "one", "heart"), Prompt("line-2", "two", "af_aoede")]
    assert eval_prompts(str(path), ["af_aoede", "heart"]) == named
    assert eval_prompts(str(path), []) == [Prompt("a", "one"), Prompt("line-2", "two")]
    (tmp_path / "prompts.txt").write_text("one two\n")
    assert eval_prompts(str(tmp_path / "prompts.txt"), []) == [Prompt("line-1", "one two")]
    with pytest.raises(ValueError, match="line-1: speaker None, the model's voices are heart"):
        eval_prompts(str(tmp_path / "prompts.txt"), ["heart"])


def test_a_llama_base_trains_over_all_rows(
    resident: Resident, encoded: Path, base: Path, tmp_path: Path
) -> None:
    config = LlamaConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(base)), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=2048, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "llama")
    data, output = normalized(encoded, tmp_path / "english", ENGLISH), tmp_path / "out"
    resident.train(
        train,
        train_config(
            data, tmp_path / "llama", output, max_steps=4, eval_every=4, save_every=4,
            softmax="full", schedule="wsd", learning_rate=1e-2,
        )
    )  # fmt: skip
    rows = metrics(output)[1:]
    assert rows[0]["loss"] == pytest.approx(np.log(12_350), rel=0.1), "uniform over all rows"
    assert rows[-1]["loss"] < rows[0]["loss"]
    info = checkpoint.read_info(output / "checkpoint")
    assert info.softmax == "full"
    assert info.normalizer == (ENGLISH, NfcSpaceStep())


def test_a_torn_parquet_file_is_named(encoded: Path, base: Path, tmp_path: Path) -> None:
    shutil.copytree(encoded, tmp_path / "torn")
    path = next((tmp_path / "torn").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{path.name}: not a whole Parquet file"):
        train(train_config(tmp_path / "torn", base, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 100}, "--batch-tokens 100: a row must hold the longest utterance"),
        ({"trackers": ["tensorbord"]}, "--trackers tensorbord: no such tracker"),
        (
            {"asr": "./nowhere", "eval_prompts": "p"},
            "--asr: ASR model './nowhere': no such folder",
        ),
        (
            {"asr": "base.en", "asr_language": "de", "eval_prompts": "p"},
            r"--asr-language: ASR model 'base\.en' does not know language 'de'; it knows en",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_named(
    encoded: Path, base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(train_config(encoded, base, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "prompt"),
    [
        pytest.param(
            "orpheus", "SOH, BOS, TEXT `{speaker}: {text}`, EOT, EOH, SOA, SOS", id="orpheus"
        ),
        *(
            pytest.param(form, prompt, marks=pytest.mark.soak, id=form)
            for form, prompt in (
                ("maya1", 'BOS, SOH, BOS, TEXT `<description="{speaker}"> {text}`, EOT, EOH'),
                ("veena", "SOH, TEXT `<spk_{speaker}> {text}`, EOH, SOA, SOS"),
                ("svara", "BOS, SOH, AUDIO, TEXT `{speaker}: {text}`, EOH, EOT, SOA, SOS"),
                ("vyvo-qwen3", "SOH, TEXT `{speaker}: {text}`, EOT, EOH, SOA, SOS"),
            )
        ),
    ],
)
def test_a_checkpoint_of_the_orpheus_family_is_fine_tuned_as_it_is(
    resident: Resident,
    encoded: Path,
    made_once: Callable[..., Path],
    tmp_path: Path,
    form: str,
    prompt: str,
) -> None:
    kind = form if form == "vyvo-qwen3" else "orpheus"
    model = made_once(kind, lambda folder: orpheus.save(folder, kind))
    config = train_config(encoded, model, tmp_path, form=form, max_steps=2, accumulation=1)
    resident.train(train, config)
    info = checkpoint.read_info(tmp_path / "checkpoint")
    assert (info.layout.family, info.prompt.name, info.softmax) == ("orpheus", form, "full")
    assert info.voices == ([] if form == "maya1" else sorted(VOICES))
    assert info.sampling is not None
    card = (tmp_path / "checkpoint" / "README.md").read_text("utf-8")
    assert prompt in card
    assert "Softmax in training: full" in card
    voice = load_voice(str(tmp_path / "checkpoint"))
    assert voice.model.layout == orpheus.LAYOUT
    tables = [orpheus_weights(folder) for folder in (model, tmp_path / "checkpoint")]
    assert tables[0].shape == tables[1].shape, "no row is added"
    assert not torch.equal(*tables)


def orpheus_weights(folder: Path) -> torch.Tensor:
    return load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
