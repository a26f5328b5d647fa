"""One variant of the training benchmark, in a process of its own: prints its figures as JSON.

Run by `benchmarks/training.py`. Owns how the variants differ. All see the same clips: the first
batch is warm-up, the others are timed. All take AdamW steps of about as many target tokens.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from baseline import train_baseline
from clock import Clock
from workload import Clip, Padded, PaddedLM, Shape, draw_clips, make_base, pack_row, pad_batch

from sheen.lm.batching import Batch
from sheen.lm.model import SpeechLM
from sheen.lm.packing import plan_epoch
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner

BATCH = 4  # clips
LEARNING_RATE = 1e-5
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.95)  # Learner's
OPTIMIZER = "adamw_torch_fused"
"""Trainer's name for what Learner uses, and its own default."""
CLIP_NORM = 1.0
ROWS = 2
"""Packed rows of a step, computed one after the other; together they hold BATCH clips."""
ROOM = 1.05
"""Such a row holds its mean share of tokens and this much room to pack well."""

Make = Callable[[], Batch | Padded]
"""Collating a batch belongs to its step."""


def train_ours(model: SpeechLM, steps: Sequence[Sequence[Make]], clock: Clock) -> float:
    """With the training job's own learner; returns the mean loss of the steps."""
    learner = Learner(
        model,
        Collectives(torch.device("cpu")),
        strategy="ddp",
        precision="float32",
        compile_layers=False,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
    )
    used = learner.optimizer.defaults
    assert used["betas"] == BETAS, used
    assert bool(used["fused"]) == OPTIMIZER.endswith("_fused"), "the optimizers are not the same"
    losses = []
    for step in steps:
        batches = [make() for make in step]
        targets = sum(len(batch.targets) for batch in batches)
        losses.append(0.0)
        for index, batch in enumerate(batches):
            loss = learner.loss(batch, last=index + 1 == len(step)).loss.sum() / targets
            loss.backward()
            losses[-1] += loss.item()
            del loss
        learner.update(LEARNING_RATE, CLIP_NORM)
        clock.step()
    return sum(losses) / len(losses)


def in_batches(clips: Sequence[Clip]) -> list[Sequence[Clip]]:
    return [clips[first : first + BATCH] for first in range(0, len(clips), BATCH)]


def in_rows(clips: Sequence[Clip]) -> list[Sequence[Clip]]:
    lengths = np.array([len(clip) for clip in clips], dtype=np.int64)
    capacity = max(int(ROOM * lengths.mean() * BATCH / ROWS), int(lengths.max()))
    rows = plan_epoch(lengths, np.arange(len(clips)), capacity, seed=0, epoch=0)
    return [[clips[index] for index in row] for row in rows]


def padded_positions(clips: Sequence[Clip]) -> int:
    return sum(len(batch) * max(map(len, batch)) for batch in in_batches(clips))


def check(shape: Shape, clips: Sequence[Clip]) -> dict[str, Any]:
    """Assert that the variants compute the same losses where they should."""
    lm, layout = make_base(shape), shape.layout
    every, legal = SpeechLM(lm, layout, "full"), SpeechLM(lm, layout)
    legal_padded = PaddedLM(lm, layout)
    padded, packed = pad_batch(clips, layout), pack_row(clips, layout)
    count = len(packed.targets)
    assert count == len(padded.targets) == int((padded.labels != -100).sum())
    assert count == sum(clip.targets for clip in clips)
    with torch.no_grad():
        theirs = lm(
            input_ids=padded.input_ids,
            attention_mask=padded.attention_mask,
            labels=padded.labels,
            use_cache=False,
        ).loss.item()
        losses = {
            "transformers, padded": theirs,
            "all rows, packed": every(packed).loss.sum().item() / count,
            "legal rows, padded": legal_padded(padded).loss.sum().item() / count,
            "legal rows, packed": legal(packed).loss.sum().item() / count,
        }
    whole, restricted = list(losses.values())[:2], list(losses.values())[2:]
    for pair in (whole, restricted):
        np.testing.assert_allclose(pair[0], pair[1], rtol=2e-5, err_msg=str(losses))
    assert restricted[0] < whole[0], losses
    return {"losses": losses}


def run(variant: str, shape: Shape, clips: Sequence[Clip]) -> dict[str, Any]:
    layout = shape.layout
    warm_up, timed = clips[:BATCH], clips[BATCH:]
    clock = Clock()
    lm = make_base(shape)
    clock.watch(lm)
    if variant == "baseline":
        loss = train_baseline(
            lm,
            clips,
            layout,
            clock,
            batch=BATCH,
            optimizer=OPTIMIZER,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            betas=BETAS,
            clip_norm=CLIP_NORM,
        )
        positions = padded_positions(timed)
    else:
        packs = variant.startswith("packed")
        if packs:
            parts = in_rows(timed)
        elif variant == "head, lengths":
            parts = in_batches(sorted(timed, key=len))
        else:
            parts = in_batches(timed)
        make_batch = pack_row if packs else pad_batch
        rows = ROWS if packs else 1
        parts = [*(in_rows(warm_up) if packs else [warm_up]), *parts]
        batches = [lambda part=part: make_batch(part, layout) for part in parts]
        first = len(in_rows(warm_up)) if packs else 1
        steps = [batches[:first]]
        steps += [batches[at : at + rows] for at in range(first, len(batches), rows)]
        model = (SpeechLM if packs else PaddedLM)(lm, layout)
        if variant == "packed, all rows":
            model.softmax = "full"
        loss = train_ours(model, steps, clock)
        positions = sum(make().input_ids.numel() for make in batches[first:])
    figures = {"loss": loss, "targets": sum(clip.targets for clip in timed)}
    return figures | {"positions": positions} | clock.figures()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variant")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--longest", type=float, required=True, help="seconds")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    shape = Shape(options.layers)
    shape = shape.small if options.small else shape
    count = (1 + options.steps) * BATCH
    seconds = options.longest / 12, options.longest
    clips = draw_clips(count, *seconds, shape.layout)
    if options.variant == "check":
        figures = check(shape, clips[:2])
        many = draw_clips(4000, *seconds, shape.layout)
        expected = padded_positions(many) / sum(clip.targets for clip in many)
        figures["expected_positions_per_target"] = expected
    else:
        figures = run(options.variant, shape, clips)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(figures | {"versions": versions}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
