"""Rows that begin with another utterance of their speaker: which, how often, what is learned."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from helpers.utterances import LAYOUT, prompts, utterances
from sheen.codec.layout import TokenLayout
from sheen.lm.batching import collate
from sheen.lm.checkpoint import CheckpointInfo, read_info
from sheen.lm.loss import IGNORE_INDEX
from sheen.text.prompt import speaker_text
from sheen.train.data import build_training_set, describe, plan_run
from sheen.train.learning.training_set import CHOICES, TrainingSet, pair_utterances

FRAME = 7
MOST = 110


def test_a_reference_is_given_and_not_learned() -> None:
    texts, codes = prompts(4, 6, 3), utterances(5, 2, 4)
    plain = collate(texts, codes, LAYOUT, 0, 120)
    batch = collate(texts, codes, LAYOUT, 0, 120, [3, 0, 1])
    assert batch.input_ids.equal(plain.input_ids)
    assert batch.prompts == plain.prompts, "of the text alone"
    labels, whole = batch.labels[0], plain.labels[0]
    given = np.zeros(120, bool)
    for start, count in ((4, 3), (4 + 5 * FRAME + 1 + 6 + 2 * FRAME + 1 + 3, 1)):
        given[start : start + count * FRAME] = True
    assert (labels[given] == IGNORE_INDEX).all()
    assert labels[~given].equal(whole[~given])
    learned = sum(batch.targets.counts)
    assert learned == sum(plain.targets.counts) - 4 * FRAME


def pairs(speakers: list[str | None], **changes: Any) -> dict[int, set[int]]:
    texts = changes.pop("texts", [f"text {index}" for index in range(len(speakers))])
    asked: dict[str, Any] = {"share": 0.5, "seed": 0, "fits": lambda before, spoken: True}
    asked |= changes
    rows = pair_utterances(texts, speakers, np.arange(len(speakers)), **asked)
    found: dict[int, set[int]] = {}
    for index in range(len(speakers)):
        own = rows.rows[index][rows.rows[index] >= 0]
        assert (rows.spoken[own] == index).all()
        if len(own):
            assert len(own) == CHOICES
            found[index] = set(rows.before[own].tolist())
    return found


def test_a_pair_is_of_one_speaker_and_of_two_texts() -> None:
    speakers = ["a", "b", None] * 20
    texts = [f"text {index // 6}" for index in range(60)]
    found = pairs(speakers, texts=texts)
    assert set(found) == {index for index in range(60) if speakers[index]}, "nobody is no voice"
    for index, others in found.items():
        assert all(speakers[other] == speakers[index] for other in others)
        assert all(texts[other] != texts[index] for other in others)
    assert sum(map(len, found.values())) > 1.8 * len(found), "mostly two different ones"


def test_without_speakers_all_are_one_voice() -> None:
    assert len(pairs([None] * 10)) == 10


@pytest.mark.parametrize(
    "changes", [{"speakers": ["a", "b", "c"]}, {"fits": lambda before, spoken: False}]
)
def test_data_without_a_pair_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--reference-share: no two utterances of one speaker"):
        pairs(**{"speakers": ["a"] * 3, **changes})


def test_a_share_is_drawn_anew_in_each_epoch() -> None:
    rows = pair_utterances(
        [str(index) for index in range(4000)],
        ["a"] * 4000,
        np.arange(4000),
        0.25,
        0,
        lambda before, spoken: spoken % 2 == 0,
    )
    train = np.arange(0, 4000)
    first, second = (rows.of_epoch(train, 7, epoch) for epoch in (0, 1))
    assert np.array_equal(first, rows.of_epoch(train, 7, 0)), "a resumed run has the same"
    assert not np.array_equal(first, rows.of_epoch(train, 8, 0))
    for items in (first, second):
        paired = items >= 4000
        assert not paired[1::2].any()
        assert 0.2 < paired[::2].mean() < 0.3
        assert np.array_equal(rows.spoken[items[paired] - 4000], train[paired])
    assert 0.2 < (second[first >= 4000] >= 4000).mean() < 0.3


# Through the training set


@pytest.fixture(scope="module")
def layout(checkpoint: Path) -> TokenLayout:
    return read_info(checkpoint).token_layout


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(checkpoint))
    return tokenizer


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> str:
    draw = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("codes") / "codes.jsonl"
    rows = []
    for index in range(40):
        frames = int(draw.integers(2, 12))
        codes = [draw.integers(0, 4096, frames * times).tolist() for times in (1, 2, 4)]
        speaker = ["slt", "awb"][index % 2]
        rows.append({"text": f"text {index}", "speaker": speaker, "snac_codes": codes})
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def test_what_says_how_stands_before_the_text_of_every_row(
    lines: str, layout: TokenLayout, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Alone, with another text, and after a reference: as it is asked for."""
    rows = [json.loads(line) for line in Path(lines).read_text().splitlines()]
    for index in range(0, len(rows), 2):
        rows[index]["instruction"] = f"so {index}"
    path = tmp_path / "codes.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    data, taught = build_training_set(
        [str(path)], layout, tokenizer, MOST, 0.2, 8, seed=0, reference_share=1.0
    )
    assert data.references is not None
    template = speaker_text(tokenizer, layout.start_id)

    def prompt(index: int) -> list[int]:
        return data.prompts[data.prompt_offsets[index] : data.prompt_offsets[index + 1]].tolist()

    told = [row.get("instruction") for row in rows]
    for index, row in enumerate(rows):
        assert prompt(index) == template.ids(row["text"], row["speaker"], told[index])
    for index, other in data.swapped_prompts.items():
        line = f"{told[index]}\n" if told[index] else ""
        assert tokenizer.decode(other).startswith(f"{rows[index]['speaker']}: {line}text")
    pairs = zip(data.references.before.tolist(), data.references.spoken.tolist(), strict=True)
    for number, (before, spoken) in enumerate(pairs):
        text = f"{rows[before]['text']} {rows[spoken]['text']}"
        expected = template.ids(text, None, told[spoken])
        assert prompt(data.references.first + number) == expected
    assert data.summary["utterances_with_instructions"] == sum(not i % 2 for i in data.train)
    assert "with an instruction" in describe(data.summary)
    info = CheckpointInfo.model_construct()
    taught.add_to(info)
    assert info.follows_instructions
    replace(taught, instructions=False).add_to(info)
    assert info.follows_instructions, "what was taught before is not unlearned"


def test_a_row_of_a_run_is_one_turn_and_every_row_fits(
    lines: str, layout: TokenLayout, tokenizer: PreTrainedTokenizerBase
) -> None:
    def built(share: float) -> TrainingSet:
        return build_training_set(
            [lines], layout, tokenizer, MOST, 0.2, 8, seed=0, reference_share=share
        )[0]

    plain, data = built(0.0), built(1.0)
    rows = data.references
    assert rows is not None
    assert np.array_equal(data.train, plain.train)
    assert np.array_equal(data.lengths[: rows.first], plain.lengths)
    assert 0 < data.summary["utterances_with_references"] < len(data.train), "some are too long"
    assert set(rows.before.tolist()) <= set(data.train.tolist()), "nothing that is held out"
    texts = [json.loads(line)["text"] for line in Path(lines).read_text().splitlines()]
    for number in range(len(rows.spoken)):
        before, spoken = int(rows.before[number]), int(rows.spoken[number])
        batch = data.batch(np.array([rows.first + number]), 0)
        prompt = speaker_text(tokenizer, layout.start_id).ids(f"{texts[before]} {texts[spoken]}")
        codes = [plain.batch(np.array([index]), 0) for index in (before, spoken)]
        audio = [part.input_ids[0, part.prompts[0] :].tolist() for part in codes]
        assert batch.input_ids[0].tolist() == [*prompt, *audio[0][:-1], *audio[1]]
        assert batch.tokens == data.lengths[rows.first + number] <= MOST
        assert (batch.labels[0] != IGNORE_INDEX).sum() == len(audio[1])
    arguments: dict[str, Any] = {
        "capacity": 200, "seed": 0, "epochs": 3, "max_steps": None, "world": 1,
        "accumulation": 1, "done": None,
    }  # fmt: skip
    plan = plan_run(data.lengths, partial(data.items, 0), **arguments)
    seen = [index for step in plan.steps for ranks in step for row in ranks for index in row]
    paired = [index for index in seen if index >= rows.first]
    assert len(seen) == 3 * len(data.train)
    assert len(paired) == 3 * data.summary["utterances_with_references"]
    assert len(set(paired)) > len(paired) / 3, "not the same ones in every epoch"
    assert plan.row_length <= 200
    stepped = plan_run(
        data.lengths, partial(data.items, 0), **arguments | {"max_steps": plan.total}
    )
    assert str(stepped.steps) == str(plan.steps)
