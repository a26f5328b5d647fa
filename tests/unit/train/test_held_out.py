"""Text gain: which other text stands in, and what it says of a model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from helpers.small_models import small_model
from helpers.utterances import LAYOUT, utterances
from sheen.codec.layout import TokenLayout
from sheen.lm.model import SpeechLM
from sheen.text.prompt import speaker_text
from sheen.train.data import build_training_set
from sheen.train.evaluation import Evaluation
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.held_out import swap_texts
from sheen.train.learning.learner import Learner
from sheen.train.learning.training_set import TrainingSet

START = 99


def swapped(base: Path, texts: list[str], speakers: list[str | None], held_out: list[int]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    template = speaker_text(tokenizer, START)
    prompts = [template.ids(*row) for row in zip(texts, speakers, strict=True)]
    how = [None] * len(texts)
    found = swap_texts(texts, speakers, how, prompts, np.array(held_out), template)
    return {
        index: (tokenizer.decode(ids[:-1]), len(prompts[index]) - len(ids), int(ids[-1]))
        for index, ids in found.items()
    }


def test_the_next_shorter_held_out_text_stands_in_and_the_speaker_stays(base: Path) -> None:
    texts = ["four four four", "one", "three", "one two", "three", "nine nine nine nine"]
    speakers = ["ann", "ann", "bob", None, "ann", "ann"]
    found = swapped(base, texts, speakers, [0, 1, 2, 3, 4])
    assert found == {
        0: ("ann: one two", 7, START),
        1: ("ann: thr", 0, START),  # the shortest has none shorter: a longer one, cut to its length
        2: ("bob: one", 2, START),
        3: ("three", 2, START),
        4: ("ann: one", 2, START),
    }


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "one"]])
def test_without_a_second_text_nothing_is_swapped(base: Path, texts: list[str]) -> None:
    assert swapped(base, texts, ["ann", "bob"][: len(texts)], list(range(len(texts)))) == {}


class Rank(Collectives):
    """One of `world` ranks, run one after the other: `board` keeps what each has summed."""

    def __init__(self, board: list[Mapping[str, Tensor]], rank: int = 0, world: int = 1) -> None:
        super().__init__(torch.device("cpu"), rank, world)
        self._board = board

    def sum_named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._board.append(values)
        return {name: sum(part[name] for part in self._board) for name in values}  # type: ignore[misc]


def data_of(count: int, frames: int = 2) -> TrainingSet:
    """Utterances of random codes, each held out, with texts of one length and of its own."""
    texts = [[1 + index % 7, 8 + index // 7, 3, LAYOUT.start_id] for index in range(count)]
    codes = np.concatenate(utterances(*[frames] * count))
    everything = np.arange(count)
    return TrainingSet(
        layout=LAYOUT,
        prompts=np.array(texts, np.int32).reshape(-1),
        prompt_offsets=np.arange(count + 1) * 4,
        frames=codes,
        frame_offsets=np.arange(count + 1) * frames,
        lengths=np.full(count, 4 + 7 * frames + 1),
        train=everything,
        evaluation=everything,
        swapped_prompts={i: np.array(texts[i - 1], np.int32) for i in range(count)},
        summary={},
    )


def open_learner(model: SpeechLM, group: Collectives) -> Learner:
    return Learner(
        model, group, strategy="ddp", precision="float32", compile_layers=False, learning_rate=1e-2
    )


def evaluate(learner: Learner, data: TrainingSet, group: Collectives) -> dict[str, Any]:
    return Evaluation(learner, group, data, None, capacity=100, pad_id=0).loss()


def gains(metrics: dict[str, Any]) -> list[float]:
    return [value for name, value in metrics.items() if name.startswith("eval_text_gain_level_")]


@pytest.mark.slow
def test_a_model_that_ignores_the_text_gains_nothing_and_one_that_needs_it_gains() -> None:
    data, group = data_of(12), Rank([])
    deaf = small_model("qwen3")
    with torch.no_grad():
        deaf.head[: LAYOUT.first_id] = 0.0
    metrics = evaluate(open_learner(deaf, group), data, Rank([]))
    assert gains(metrics) == [0.0, 0.0, 0.0]

    learner = open_learner(small_model("qwen3"), group)
    for _ in range(60):
        sums = learner.loss(data.batch(data.train, 0), last=True)
        (sums.loss.sum() / sums.count.sum()).backward()
        learner.update(1e-2)
    metrics = evaluate(learner, data, group)
    found = gains(metrics)
    assert len(found) == LAYOUT.levels
    assert found[0] > 1.0
    assert min(found) > 0.0
    # What it says: the loss after the other texts, per level, less that after the right ones.
    sums = learner.evaluate(data.batch(data.evaluation, 0, swapped=True))
    right = [metrics[f"eval_loss_level_{level}"] for level in range(LAYOUT.levels)]
    expected = (sums.loss / sums.count).numpy() - right
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_workers_share_the_rows_and_say_what_one_says() -> None:
    data = data_of(13)
    alone = evaluate(open_learner(small_model("qwen3"), Rank([])), data, Rank([]))
    assert any(gains(alone))
    board: list[Mapping[str, Tensor]] = []
    learner = open_learner(small_model("qwen3"), Rank([]))
    for rank in (1, 0):
        shared = evaluate(learner, data, Rank(board, rank, 2))
    assert shared == alone


def test_with_one_held_out_text_there_is_a_loss_and_no_gain() -> None:
    data = data_of(3)
    data = cast(TrainingSet, TrainingSet(**{**vars(data), "swapped_prompts": {}}))
    metrics = evaluate(open_learner(small_model("qwen3"), Rank([])), data, Rank([]))
    assert "eval_loss_level_2" in metrics
    assert not gains(metrics)


def test_an_evaluation_of_some_held_out_rows_is_of_all_datasets(base: Path, tmp_path: Path) -> None:
    """The first rows would all be of the first one."""
    locations = []
    for name in ("a", "b"):
        locations.append(str(tmp_path / f"{name}.jsonl"))
        lines = [
            json.dumps({"text": f"{name} {row}", "snac_codes": [[1], [1, 2], [1, 2, 3, 4]]})
            for row in range(40)
        ]
        Path(locations[-1]).write_text("\n".join(lines))
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    layout = TokenLayout(len(tokenizer), 4096, (4, 2, 1))

    def held_out(rows: int) -> set[int]:
        data, _ = build_training_set(locations, layout, tokenizer, 128, 0.5, rows, seed=0)
        assert set(data.evaluation.tolist()).isdisjoint(data.train.tolist())
        return set(data.evaluation.tolist())

    everything, some = held_out(80), held_out(16)
    assert len(everything) > 24
    assert len(some) == 16
    assert some < everything
    assert sum(row < 40 for row in some) in range(3, 14)  # of the first dataset
