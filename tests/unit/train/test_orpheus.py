"""Fine-tuning the Orpheus family: its rows id for id, and speech that needs no mask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import orpheus
from helpers.example import CODEC
from helpers.orpheus import EOA, EOS, FIRST, ROWS, SOA, SOH, SOS, words
from helpers.random_codes import write_codes
from helpers.speaking import generate
from sheen.codec.info import DEFAULT_CODEC, describe_codec
from sheen.codec.layout import Softmax
from sheen.inspection import main as inspect
from sheen.lm.batching import Batch, RowForm, add_history_noise, collate
from sheen.lm.checkpoint import CheckpointInfo, PromptInfo, is_checkpoint, read_info
from sheen.lm.loss import IGNORE_INDEX, speech_loss
from sheen.lm.model import SpeechLM
from sheen.lm.model_files import load_model, save_model
from sheen.text.forms import FORMS, FormName
from sheen.train.data import build_training_set
from sheen.train.initial import open_model
from sheen.train.inputs import plan_checkpoint

Made = Callable[[str, Callable[[Path], None]], Path]
LAYOUT = orpheus.LAYOUT


@pytest.fixture(scope="module")
def folder(made_once: Made) -> Path:
    return made_once("orpheus-plain", lambda folder: orpheus.save(folder, scale=1.0))


@pytest.fixture(scope="module")
def planned(folder: Path) -> tuple[CheckpointInfo, Any]:
    info, tokenizer, extends = plan_checkpoint(
        str(folder), describe_codec(str(CODEC)), form="orpheus"
    )
    assert not extends
    return info, tokenizer


@pytest.mark.slow
def test_a_record_of_inspect_changes_no_plan(
    folder: Path, planned: tuple[CheckpointInfo, Any], tmp_path: Path
) -> None:
    own = tmp_path / "model"
    own.mkdir()
    for path in folder.iterdir():
        (own / path.name).symlink_to(path)
    assert inspect([str(own), "--form=orpheus", f"--codec={CODEC}", "--no-measure"], "inspect") == 0
    assert read_info(own).voices[0] == "tara"
    assert plan_checkpoint(str(own), describe_codec(str(CODEC)))[0] == planned[0]


@pytest.mark.slow
def test_data_of_another_codec_than_the_published_one_gets_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The checkpoint does not say which it was trained with."""
    published = describe_codec(str(CODEC)).model_copy(update={"source": DEFAULT_CODEC})
    for codec, named, said in (
        (describe_codec(str(CODEC)), False, True),
        (describe_codec(str(CODEC)), True, False),
        (published, False, False),
    ):
        caplog.clear()
        plan_checkpoint(str(folder), codec, form="orpheus", named=named)
        assert ("name it with --codec" in caplog.text) == said


def test_the_voices_of_a_fine_tune_are_those_of_its_data(
    planned: tuple[CheckpointInfo, Any],
) -> None:
    info, _ = planned
    assert info.imported is None
    assert info.voices == []
    assert info.duration_model == {}
    assert info.softmax == "full"
    assert info.prompt.name == "orpheus"


@pytest.mark.slow
def test_descriptions_are_no_list_of_voices(folder: Path, tmp_path: Path) -> None:
    info, tokenizer, _ = plan_checkpoint(str(folder), describe_codec(str(CODEC)), form="maya1")
    path = write_codes(tmp_path / "codes.jsonl")
    data, properties = build_training_set(
        [str(path)], info.token_layout, tokenizer, 256, 0.2, 8, 0, prompt=info.prompt
    )
    assert properties.voices == []
    assert list(properties.duration_model) == [""]
    first = data.prompts[: data.prompt_offsets[1]].tolist()
    assert '<description="ann"> text 0' in tokenizer.decode(first)


@pytest.mark.parametrize("form", get_args(FormName))
def test_a_row_is_the_familys_id_for_id(
    planned: tuple[CheckpointInfo, Any], tmp_path: Path, form: FormName
) -> None:
    _, tokenizer = planned
    if form == "vyvo-qwen3":
        tokenizer = orpheus.tokenizer(orpheus.QWEN)
    before, text, after, tail = ROWS[form]
    softmax: Softmax
    for softmax in get_args(Softmax):
        data, properties = build_training_set(
            [str(write_codes(tmp_path / "codes.jsonl"))], LAYOUT, tokenizer, 256, 0.2, 8, 0,
            prompt=PromptInfo(name=form), softmax=softmax,
        )  # fmt: skip
        # A description is no name.
        assert properties.voices == ([] if form == "maya1" else ["ann"])
        index = int(data.train[0])
        batch = data.batch(np.array([index]), 0)
        spoken = words(tokenizer, text.format(voice="ann", text=f"text {index}"))
        first, last = data.frame_offsets[index : index + 2]
        prompt, codes = [*before, *spoken, *after], LAYOUT.to_ids(data.frames[first:last])
        assert batch.input_ids[0].tolist() == [*prompt, *codes.tolist(), EOS, *tail]
        assert batch.input_ids.shape[1] == data.lengths[index]
        labels, own = batch.labels[0].tolist(), -len(tail)
        learned = len(prompt) - (2 if softmax == "full" else 0)
        assert labels[:learned] == [IGNORE_INDEX] * learned
        assert labels[learned:own] == batch.input_ids[0, learned:own].tolist()
        assert labels[own:] == (tail if softmax == "full" else [IGNORE_INDEX] * len(tail))
        # Another text stands in without its control tokens being touched.
        for number, swapped in data.swapped_prompts.items():
            assert swapped.tolist()[: len(before)] == before
            assert swapped.tolist()[-len(after) :] == after
            assert len(swapped) <= data.prompt_offsets[number + 1] - data.prompt_offsets[number]


def made_batch(form: RowForm, pad_to: int = 0) -> Batch:
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 4096, (count, 7), np.int16) for count in (2, 3)]
    prompts = [[SOH, 5, 6, SOA, SOS], [SOH, 7, SOA, SOS]]
    return collate(prompts, frames, LAYOUT, 0, pad_to, form=form)


def test_the_loss_is_that_of_a_plain_reference() -> None:
    """Target by target in float64, from the row alone; levels, not blocks, have the sums."""
    form = RowForm(tail=(EOA,), learned=2)
    for softmax, batch in (("full", made_batch(form, 64)), ("masked", made_batch(RowForm((EOA,))))):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(batch.input_ids.shape[1], 8, generator=generator)
        head = torch.randn(FIRST + LAYOUT.size + 5, 8, generator=generator)
        sums = speech_loss(hidden, batch.targets, head, LAYOUT, softmax)  # type: ignore[arg-type]
        levels, counts, step = np.zeros(3), np.zeros(3, int), 0
        labels = batch.labels[0].tolist()
        for at in range(1, len(labels)):
            token = labels[at]
            step = 0 if batch.input_ids[0, at - 1] == SOS else step + 1
            if token == IGNORE_INDEX:
                continue
            slot = step % 7
            control = token in (SOA, SOS, EOA)
            level = 0 if control else LAYOUT.slots[slot][0]
            scores = head.double() @ hidden[at - 1].double()
            legal = list(LAYOUT.legal(slot)) if softmax == "masked" else slice(None)
            levels[level] += float(scores[legal].logsumexp(0) - scores[token])
            counts[level] += 1
        np.testing.assert_allclose(sums.loss.numpy(), levels, rtol=1e-5)
        assert sums.count.tolist() == counts.tolist() == batch.targets.counts
        assert int(sums.ends) == 2


def test_history_noise_replaces_codes_alone() -> None:
    batch = made_batch(RowForm(tail=(EOA,), learned=2))
    for seed in range(3):
        noisy = add_history_noise(batch, LAYOUT, 1.0, np.random.default_rng(seed))
        before, after = batch.input_ids[0], noisy.input_ids[0]
        for at in (before != after).nonzero()[:, 0].tolist():
            was, now = int(before[at]), int(after[at])
            own = next(block for block in LAYOUT.blocks if was - block.base in range(4096))
            assert now - own.base in range(4096), "of the same slot"


@pytest.mark.slow
def test_adapters_leave_the_tables_alone_where_no_row_is_new(
    folder: Path, planned: tuple[CheckpointInfo, Any]
) -> None:
    model, _ = open_model(str(folder), planned[0], 0, None, lora_rank=2)
    assert not any(table.requires_grad for table in model.tables)
    model.prepare_training()
    sums = model(made_batch(RowForm((EOA,), 2)))
    sums.loss.sum().backward()
    learning = [part for part in model.parameters() if part.requires_grad]
    assert learning
    assert all(part.grad is not None for part in learning)


def overfit(model: SpeechLM, batch: Batch) -> None:
    model.train()
    model.prepare_training()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for _ in range(400):
        sums = model(batch)
        loss = sums.loss.sum() / sums.count.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss < 0.01:
            break
    model.eval()
    assert loss < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(form, marks=() if form == "orpheus" else pytest.mark.soak)
        for form in get_args(FormName)
    ],
)
def test_an_overfitted_clip_is_spoken_by_loops_without_a_mask(
    form: FormName, folder: Path, tmp_path: Path
) -> None:
    """Opened by bare transformers, from the prompt that ends at the speech's start, and from the
    notebooks' one, which ends before the AI's turn."""
    if form == "vyvo-qwen3":
        folder = tmp_path / "qwen"
        orpheus.save(folder, form, scale=1.0)
    model, tokenizer = load_model(folder, LAYOUT, "full")
    template = FORMS[form].template(tokenizer, FIRST)
    prompt = template.ids("four two", "ann")
    frames = np.random.default_rng(1).integers(0, 4096, (3, 7), np.int16)
    row = RowForm(template.tail, template.learned)
    overfit(model, collate([prompt], [frames], LAYOUT, 0, form=row))
    speech = [*LAYOUT.to_ids(frames).tolist(), EOS]
    assert generate(model, [prompt], len(speech)) == [speech], "by the masked engine"

    save_model(model, tokenizer, tmp_path)
    assert not is_checkpoint(tmp_path)
    bare = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    same = AutoTokenizer.from_pretrained(tmp_path)
    before, text, after, _ = ROWS[form]
    spoken = words(same, text.format(voice="ann", text="four two"))
    notebook = [*before, *spoken, *after[:-2]]
    for given, expected in ((notebook, [SOA, SOS, *speech]), ([*notebook, SOA, SOS], speech)):
        ids = torch.tensor([given])
        with torch.inference_mode():
            made = bare.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=len(expected) + 5,
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=FIRST + 7,
            )
        assert made[0, len(given) :].tolist() == expected
    assert [*notebook, SOA, SOS] == prompt
