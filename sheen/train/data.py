"""The training set of a speech LM, and the plan of the optimizer steps over it.

Owns tokenization, the train/evaluation split, the duration model of each voice and the data
summary: datasets on disk become arrays that all workers of a node share. The driver builds them
once and puts them into Ray's object store, so that workers need no access to the data, and errors
in it are found before any worker starts. Also owns a run's position in the data, counted in rows
and thus independent of the number of workers, and the plan of the remaining steps. Refuses data
without a usable utterance, and texts that the tokenizer maps to audio tokens.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from sheen.codec.layout import Softmax, TokenLayout
from sheen.data.dataset import Utterances, join, read_utterances
from sheen.lm.batching import RowForm, sequence_lengths
from sheen.lm.checkpoint import CheckpointInfo, DurationModel, PromptInfo, fit_durations
from sheen.lm.packing import (
    EpochItems,
    Step,
    is_held_out,
    padded_length,
    plan_epoch,
    plan_rows,
    plan_steps,
    split_hash,
)
from sheen.text.prompt import PromptTemplate, one_turn_text
from sheen.train.learning.held_out import swap_texts
from sheen.train.learning.training_set import ReferenceRows, TrainingSet, pair_utterances

logger = logging.getLogger(__name__)


SLACK = 1.1
"""Two utterances whose lengths together exceed the longest sequence by this factor cannot be a
pair; shorter ones are checked exactly."""

SHEENS_OWN = PromptInfo()


@dataclass(frozen=True)
class DataProperties:
    """Properties of the training data that the checkpoint records, see `CheckpointInfo`."""

    voices: list[str]
    duration_model: dict[str, DurationModel]
    max_chunk_chars: int
    instructions: bool = False

    def add_to(self, info: CheckpointInfo) -> None:
        """Add them to those of earlier training."""
        info.voices = sorted({*info.voices, *self.voices})
        info.duration_model |= self.duration_model
        info.max_chunk_chars = max(info.max_chunk_chars or 0, self.max_chunk_chars)
        info.instructions = info.instructions or self.instructions or None


def build_training_set(
    locations: Sequence[str],
    layout: TokenLayout,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    eval_share: float,
    eval_rows: int,
    seed: int,
    choose: Callable[[Utterances], Utterances] = lambda utterances: utterances,
    reference_share: float = 0.0,
    *,
    prompt: PromptInfo = SHEENS_OWN,
    softmax: Softmax = "masked",
    tags: Sequence[str] = (),
) -> tuple[TrainingSet, DataProperties]:
    """Read, choose, tokenize, split and count. `reference_share`: share of an epoch's utterances
    with a reference. Raises ValueError if no utterance is left for training."""
    template = prompt.template(tokenizer, layout, tags)
    form = RowForm(template.tail, template.learned if softmax == "full" else 0)
    utterances = choose(join([read_utterances(location, layout) for location in locations]))
    columns = utterances.texts, utterances.speakers, utterances.instructions
    prompts = [template.ids(*one) for one in zip(*columns, strict=True)]
    unknown = _unknown(tokenizer, layout, utterances.texts, prompts, len(template.before))
    lengths = sequence_lengths(prompts, utterances.offsets, layout, len(form.tail))
    fits = lengths <= max_tokens
    if not fits.any():
        raise ValueError(
            f"{', '.join(locations)}: all {len(lengths)} utterances are longer than --max-tokens "
            f"{max_tokens} (the shortest has {lengths.min()})"
        )
    held_out = np.array([is_held_out(text, eval_share, seed) for text in utterances.texts])
    train, evaluation = np.flatnonzero(fits & ~held_out), np.flatnonzero(fits & held_out)
    if len(train) == 0 or len(evaluation) == 0:
        # With few rows one side of the split can be empty; then all rows are used for training.
        if eval_share > 0:
            logger.warning(
                "evaluation is off: --eval-share %g of %d usable utterances leaves %d for "
                "training and %d for evaluation",
                eval_share,
                fits.sum(),
                len(train),
                len(evaluation),
            )
        train, evaluation = np.flatnonzero(fits), evaluation[:0]
    # By their hashes and not their places: the first rows may all be of one speaker or dataset.
    hashes = [split_hash(utterances.texts[index], seed) for index in evaluation]
    evaluation = np.sort(evaluation[np.argsort(hashes, kind="stable")[:eval_rows]])
    summary = _summary(utterances, lengths, fits, train, evaluation) | unknown
    swapped = swap_texts(*columns, prompts, evaluation, template)
    instructed = sum(utterances.instructions[index] is not None for index in train)
    if instructed:
        summary["utterances_with_instructions"] = instructed
    references = None
    if reference_share:
        references, more = _reference_rows(
            utterances, lengths, train, layout, template, max_tokens, reference_share, seed
        )
        paired = (references.rows[train] >= 0).any(axis=1)
        summary["utterances_with_references"] = int(paired.sum())
        frames = np.diff(utterances.offsets)
        codes = frames[references.before] + frames[references.spoken]
        prompts += more
        audio = codes * layout.tokens_per_frame + 1 + len(form.tail)
        own = np.array([len(prompt) for prompt in more]) + audio
        lengths = np.concatenate([lengths, own])
    data = TrainingSet(
        layout=layout,
        prompts=np.concatenate([np.array(prompt, np.int32) for prompt in prompts]),
        prompt_offsets=np.cumsum([0, *map(len, prompts)]),
        frames=utterances.frames,
        frame_offsets=utterances.offsets,
        lengths=lengths,
        train=train,
        evaluation=evaluation,
        swapped_prompts=swapped,
        summary=summary,
        form=form,
        references=references,
    )
    named = utterances.speakers
    if prompt.describes:  # descriptions are not voices to choose from
        named = [None] * len(named)
    properties = DataProperties(
        voices=sorted({speaker for speaker in named if speaker}),
        duration_model=_duration_model(utterances, named),
        max_chunk_chars=common_length([utterances.texts[index] for index in train]),
        instructions=bool(instructed),
    )
    return data, properties


def _reference_rows(
    utterances: Utterances,
    lengths: NDArray[np.int64],
    train: NDArray[np.int64],
    layout: TokenLayout,
    template: PromptTemplate,
    max_tokens: int,
    share: float,
    seed: int,
) -> tuple[ReferenceRows, list[list[int]]]:
    """The pairs of utterances, and the prompts of their rows."""
    texts = utterances.texts
    prompts: dict[tuple[int, int], list[int]] = {}

    def fits(before: int, spoken: int) -> bool:
        # A quick estimate first, which includes both speakers' names; then the exact length.
        if lengths[before] + lengths[spoken] > SLACK * max_tokens:
            return False
        text = one_turn_text(texts[before], texts[spoken])
        how = utterances.instructions[spoken]
        prompt = prompts[before, spoken] = template.ids(text, "", how)
        frames = len(utterances.codes(before)) + len(utterances.codes(spoken))
        audio = frames * layout.tokens_per_frame + 1 + len(template.tail)
        return len(prompt) + audio <= max_tokens

    rows = pair_utterances(texts, utterances.speakers, train, share, seed, fits)
    pairs = zip(rows.before.tolist(), rows.spoken.tolist(), strict=True)
    return rows, [prompts[pair] for pair in pairs]


def _unknown(
    tokenizer: PreTrainedTokenizerBase,
    layout: TokenLayout,
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    before: int,
) -> dict[str, Any]:
    """Numbers of `<unk>` tokens in the prompts and of texts with them, and the first such text.
    ValueError if a text has the id of an added token.

    before: tokens of a prompt before its text; a begin token of some bases is their `<unk>` too.
    """
    if (unk := tokenizer.unk_token_id) is None:
        unk = -1
    tokens, struck = 0, []
    # Templates of the Orpheus family have control tokens, and check their texts themselves.
    sheen = layout.family == "sheen"
    for text, prompt in zip(texts, prompts, strict=True):
        if sheen and max(prompt[:-1], default=0) >= layout.first_id:
            raise ValueError(
                f"the tokenizer encodes the text {text!r} with the id {max(prompt[:-1])}, which is "
                f"an audio token ({layout.first_id} and up): this base cannot be used"
            )
        if count := list(prompt[before:]).count(unk):
            tokens += count
            struck.append(text)
    return {
        "unknown_tokens": tokens,
        "texts_with_unknown_tokens": len(struck),
        "unknown_example": struck[0] if struck else None,
    }


def common_length(texts: Sequence[str]) -> int:
    """The length in characters that 99% of the texts do not exceed."""
    return int(np.percentile([len(text) for text in texts], 99, method="inverted_cdf"))


def _duration_model(
    utterances: Utterances, speakers: Sequence[str | None]
) -> dict[str, DurationModel]:
    """Duration models by voice."""
    groups: dict[str, list[int]] = {}
    for index, speaker in enumerate(speakers):
        groups.setdefault(speaker or "", []).append(index)
    frames = np.diff(utterances.offsets).astype(np.float64)
    characters = np.array([len(text) for text in utterances.texts], np.float64)
    return {
        voice: fit_durations(characters[members], frames[members])
        for voice, members in sorted(groups.items())
    }


def _summary(
    utterances: Utterances,
    lengths: NDArray[np.int64],
    fits: NDArray[np.bool_],
    train: NDArray[np.int64],
    evaluation: NDArray[np.int64],
) -> dict[str, Any]:
    """The first line of metrics.jsonl, which describes the data."""
    counts, edges = np.histogram(lengths, bins=20)
    dropped: Counter[str] = utterances.dropped
    return {
        "event": "data",
        "utterances": len(lengths),
        "train_utterances": len(train),
        "eval_utterances": len(evaluation),
        "train_tokens": int(lengths[train].sum()),
        "over_length_limit": int((~fits).sum()),
        "dropped": dict(dropped),
        "dropped_examples": utterances.examples,
        "length_histogram": {
            "tokens": [round(float(edge), 1) for edge in edges],
            "utterances": counts.tolist(),
        },
    }


def describe(summary: dict[str, Any]) -> str:
    """The summary as a line for the console."""
    text = (
        f"{summary['train_utterances']} utterances for training ({summary['train_tokens']} "
        f"tokens), {summary['eval_utterances']} for evaluation, "
        f"{summary['over_length_limit']} over the length limit"
    )
    if summary["dropped"]:
        text += f", dropped {json.dumps(summary['dropped'])}"
    if "utterances_with_references" in summary:
        text += f", {summary['utterances_with_references']} can have a reference"
    if "utterances_with_instructions" in summary:
        text += f", {summary['utterances_with_instructions']} with an instruction"
    if summary["unknown_tokens"]:
        text += (
            f"\nwarning: the base's tokenizer does not know all characters: "
            f"{summary['unknown_tokens']} tokens in {summary['texts_with_unknown_tokens']} texts "
            f"are <unk>, first in {summary['unknown_example']!r}. Use a base whose tokenizer "
            "supports the language, or change the texts"
        )
    return text


@dataclass(frozen=True)
class Position:
    """Position after `step` optimizer steps: number of `rows` used, and the present
    `rows_per_step`."""

    step: int
    rows: int
    rows_per_step: int


@dataclass(frozen=True)
class Plan:
    """The remaining steps. `notes`: effects of another number of workers.

    row_length: tokens of every row of the run, with padding. With a single length, layers are
    compiled once, and memory of a row fits the next one.
    """

    steps: list[Step]
    row_length: int
    total: int
    rows_per_step: int
    notes: list[str]


def plan_run(
    lengths: NDArray[np.int64],
    items: EpochItems,
    *,
    capacity: int,
    seed: int,
    epochs: int,
    max_steps: int | None,
    world: int,
    accumulation: int,
    done: Position | None,
) -> Plan:
    """The remaining steps of a run, by lengths, items and seed alone; `max_steps` replaces
    `epochs`."""
    size = world * accumulation
    notes = []
    if done is not None and done.rows_per_step != size:
        accumulation = max(1, round(done.rows_per_step / world))
        size = world * accumulation
        notes = [_note(done.rows_per_step, size, world, accumulation)]
    step, used = (done.step, done.rows) if done else (0, 0)
    if max_steps is None:
        rows = [
            row
            for epoch in range(epochs)
            for row in plan_epoch(lengths, items(epoch), capacity, seed, epoch)
        ]
    else:
        wanted = used + max(0, max_steps - step) * size
        rows = list(islice(plan_rows(lengths, items, capacity, seed), wanted))
    # Of all rows, not the remaining ones, so that a resumed run has the same length.
    row_length = padded_length(lengths, rows, capacity)
    steps = plan_steps(rows[used:], world, accumulation)
    return Plan(steps, row_length, step + len(steps), size, notes)


def _note(before: int, now: int, world: int, accumulation: int) -> str:
    if before == now:
        return (
            f"resumed with {world} workers and {accumulation} rows each: a step still has the same "
            f"{now} rows; sums are computed in another order, so that last digits may differ"
        )
    return (
        f"resumed with {world} workers and {accumulation} rows each: a step now has {now} rows "
        f"instead of {before}. The data continues where it stopped; the learning rate stays as "
        "configured"
    )
