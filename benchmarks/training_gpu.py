"""How fast one GPU trains Qwen3-0.6B, step by step from padded batches to compiled layers.

Random weights, bfloat16 autocast over float32 weights, clips of 1 to 12 seconds, full optimizer
steps with AdamW (fused on a GPU). Every variant starts from the same weights; tokens are those of
clips, pads do not count. The share of the device's peak counts the arithmetic that the variant's
loss needs, not pads and not logits that nothing scores. Prints a Markdown table, writes JSON.
Neither Ray nor any other part of the training job is needed.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, synchronize
from torch import Tensor, nn
from workload import Clip, Padded, PaddedLM, Shape, draw_clips, make_base, pack_row, pad_batch

from sheen.lm.batching import Batch, plan_rows
from sheen.lm.model import SpeechLM
from sheen.train.learning.metrics import peak_flops, training_flops

BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class Variant:
    text: str
    packs: bool = True
    whole: bool = False
    compiles: bool = False


VARIANTS = [
    Variant("padded batches, the model's own loss over the whole vocabulary", False, True),
    Variant("+ loss over legal rows", False),
    Variant("+ packed rows, attention over variable lengths"),
    Variant("+ compiled layers", compiles=True),
]


class WholeLM(PaddedLM):
    """Scored by transformers' own loss over all positions' logits; returns its mean."""

    def forward(self, batch: Padded) -> Tensor:  # type: ignore[override]
        loss: Tensor = self.lm(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            use_cache=False,
        ).loss
        return loss


def batches_of(
    clips: Sequence[Clip], variant: Variant, model: SpeechLM, options: argparse.Namespace
) -> Iterator[tuple[Batch | Padded, int]]:
    """Batches without end, and how many tokens of clips each has."""
    lengths = np.array([len(clip) for clip in clips], dtype=np.int64)
    if variant.packs:
        rows = plan_rows(lengths, np.arange(len(clips)), options.row, seed=0)
        pad_to = options.row if variant.compiles else 0  # compiled code wants one shape
        for row in rows:
            yield pack_row([clips[i] for i in row], model.layout, pad_to), int(lengths[row].sum())
    random = np.random.default_rng(0)
    while True:
        chosen = random.choice(len(clips), options.batch, replace=False)
        yield pad_batch([clips[i] for i in chosen], model.layout), int(lengths[chosen].sum())


def measure(
    variant: Variant, clips: Sequence[Clip], shape: Shape, options: argparse.Namespace
) -> dict[str, Any]:
    device = torch.device(options.device)
    kind = SpeechLM if variant.packs else WholeLM if variant.whole else PaddedLM
    model = kind(make_base(shape), shape.layout, "full" if variant.whole else "masked")
    model.to(device)
    parameters = list(model.parameters())
    if variant.compiles:
        for layer in model.lm.base_model.layers:
            layer.compile()
    optimizer = torch.optim.AdamW(
        parameters, lr=1e-5, betas=BETAS, weight_decay=0.01, fused=device.type == "cuda"
    )
    batches = batches_of(clips, variant, model, options)

    def step() -> tuple[int, int, Tensor]:
        batch, tokens = next(batches)
        targets = len(batch.targets)
        with torch.autocast(device.type, torch.bfloat16):
            output = model(batch.to(device))
            loss = output if isinstance(output, Tensor) else output.loss.sum() / targets
        loss.backward()
        # As the training job, which looks at every step's norm.
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        if bool(norm.isfinite()):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return tokens, targets, loss.detach()

    started = time.perf_counter()
    for _ in range(options.warm_up):
        step()
    synchronize(device)
    warm_up = time.perf_counter() - started
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    done = [step() for _ in range(options.steps)]
    synchronize(device)
    seconds = time.perf_counter() - started
    tokens, targets = (sum(parts) for parts in list(zip(*done, strict=True))[:2])
    per_token, per_target = training_flops(model)
    flops = (per_token * tokens + per_target * targets) / seconds
    peak = peak_flops(device)
    return {
        "variant": variant.text,
        "tokens_per_second": tokens / seconds,
        "target_tokens_per_second": targets / seconds,
        "tokens_per_step": tokens / options.steps,
        "seconds_per_step": seconds / options.steps,
        "warm_up_seconds": warm_up,
        "first_loss": float(done[0][2]),
        "last_loss": float(done[-1][2]),
        "flops_per_second": flops,
        "share_of_peak": flops / peak if peak else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| variant | tokens/s | targets/s | of peak | peak, GB | gain | in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for before, row in zip([results[0], *results], results, strict=False):
        rate = row["target_tokens_per_second"]
        share = f"{row['share_of_peak']:.1%}" if row["share_of_peak"] else "–"
        memory = f"{row['peak_bytes'] / 1e9:.1f}" if row["peak_bytes"] else "–"
        lines.append(
            f"| {row['variant']} | {row['tokens_per_second']:.0f} | {rate:.0f} | {share} | "
            f"{memory} | {rate / before['target_tokens_per_second']:.2f} | "
            f"{rate / results[0]['target_tokens_per_second']:.2f} |"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=28, help="of the base")
    parser.add_argument("--row", type=int, default=32_768, help="tokens of a packed row")
    parser.add_argument("--batch", type=int, default=4, help="clips of a padded batch")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=16, help="timed steps")
    parser.add_argument("--small", action="store_true", help="a toy size: does it all run?")
    options = parser.parse_args(argv)
    shape = Shape(options.layers)
    longest = 12.0
    if options.small:
        shape, longest = Shape(2).small, 1.0
        options.row, options.warm_up, options.steps = 256, 2, 2
    # Many more than a row holds, so that rows fill.
    clips = draw_clips(64 if options.small else 4096, longest / 12, longest, shape.layout)
    results = []
    report = {
        "command": " ".join(["python", "benchmarks/training_gpu.py", *argv]),
        "machine": describe(torch.device(options.device)),
        "options": {k: v for k, v in vars(options).items() if k != "output"},
        "results": results,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for variant in VARIANTS:
        try:
            results.append(measure(variant, clips, shape, options))
        finally:
            gc.collect()
            with suppress(RuntimeError, AssertionError):
                torch.cuda.empty_cache()
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
