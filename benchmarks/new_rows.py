"""How the audio tokens' rows should begin: held-out loss after the same steps, by initialisation.

Three arms: the two ways of `sheen.lm.model`, and transformers' own mean_resizing, whose rows
all start practically equal. All fine-tune copies of one base on examples/digits; in the runs of a
seed only the rows' first values differ. `--base text` first trains that base as a language model on
the prose in Python's standard library, because a row is drawn from the statistics of the table that
is there; `--base untrained` starts where the example's voice did.
"""

import argparse
import ast
import copy
import hashlib
import json
import math
import platform
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from sheen.audio.io import decode_audio
from sheen.codec.info import describe_codec
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec, load_codec
from sheen.data.corpus import plain_rows
from sheen.lm.batching import is_held_out, pack, plan_rows
from sheen.lm.model import SpeechLM, extend
from sheen.train.data import TrainingSet, build_training_set
from sheen.train.learner import Learner, learning_rate

ROOT = Path(__file__).resolve().parent.parent
DIGITS, BENCH = ROOT / "examples" / "digits", ROOT / "runs" / "bench"
sys.path.insert(0, str(DIGITS))
from make_base import build_model, build_tokenizer  # noqa: E402

ARMS = ("independent", "codebook", "mean_resizing")
WINDOW, WINDOWS = 512, 4  # bytes in a row of text, and rows in a step: 2,048 tokens
TEXT_RATE, WARMUP, WEIGHT_DECAY, CLIP_NORM = 2e-3, 20, 0.01, 1.0
TEXT_HELD_OUT, SPEECH_HELD_OUT = 0.03, 0.1
LONGEST = 1024  # tokens of an utterance, and of the rows of evaluation; the corpus has none longer


def read_prose() -> Iterator[tuple[str, str]]:
    """Named documents: the docstrings of every module, and the reference that help() shows."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if {"site-packages", "dist-packages", "test", "tests", "idle_test"} & set(name.parts):
            continue
        try:
            nodes = list(ast.walk(ast.parse(path.read_bytes())))
        except (SyntaxError, ValueError):  # lib2to3 has files that are wrong on purpose
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        yield str(name), "\n\n".join(text for text in found if text)
    yield from sorted(topics.items())


def text_rows(tokenizer: Any) -> tuple[Tensor, Tensor, str]:
    """Rows `[n, WINDOW]` to train on, those held out, and the hash of all; no paragraph twice."""
    streams: tuple[list[int], list[int]] = ([], [])
    seen: set[str] = set()
    digest = hashlib.sha256()
    for name, text in read_prose():
        parts = [part for part in dict.fromkeys(text.split("\n\n")) if part not in seen]
        seen.update(parts)
        text = "\n\n".join(parts)
        digest.update(text.encode())
        if not text:
            continue
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        streams[is_held_out(name, TEXT_HELD_OUT, 0)].extend([*ids, tokenizer.eos_token_id])
    rows = [torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW) for ids in streams]
    return rows[0], rows[1], digest.hexdigest()


def learn_text(lm: PreTrainedModel, tokenizer: Any, steps: int) -> dict[str, Any]:
    """Next-byte cross-entropy over whole rows, in place; what was read and how well it is known."""
    rows, held_out, digest = text_rows(tokenizer)
    print(f"text: {rows.numel():,} bytes to train on, {held_out.numel():,} held out")
    optimizer = torch.optim.AdamW(lm.parameters(), betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    generator = torch.Generator().manual_seed(0)
    epochs = math.ceil(steps * WINDOWS / len(rows))
    order = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(epochs)])
    started = time.monotonic()
    for step, chosen in enumerate(order[: steps * WINDOWS].split(WINDOWS)):
        loss = lm(input_ids=rows[chosen], labels=rows[chosen], use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), CLIP_NORM)
        optimizer.param_groups[0]["lr"] = learning_rate(step, TEXT_RATE, WARMUP, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 20 == 0 or step + 1 == steps:
            bits, seconds = loss.item() / math.log(2), time.monotonic() - started
            print(f"text, step {step + 1}/{steps}: {bits:.3f} bits per byte, {seconds:.0f} s")
    with torch.no_grad():
        losses = [lm(input_ids=row[None], labels=row[None]).loss.item() for row in held_out]
    counts = torch.bincount(rows.flatten(), minlength=len(tokenizer)).double() + 1
    alone = -(counts / counts.sum()).log2()[held_out].mean().item()
    bits = float(np.mean(losses)) / math.log(2)
    print(f"held-out text: {bits:.3f} bits per byte (byte frequencies alone: {alone:.3f})")
    figures = {"bytes": rows.numel(), "held_out_bytes": held_out.numel(), "sha256": digest}
    return figures | {"bits_per_byte": bits, "bits_per_byte_of_frequencies": alone}


def speech(codec: Codec, tokenizer: Any) -> TrainingSet:
    """The example's corpus as codes, encoded once; split by text, the same in every run."""
    identity = describe_codec(str(DIGITS / "codec")).sha256
    cache = BENCH / f"new_rows-codes-{identity[:12]}.jsonl"
    if not cache.exists():
        rows, lines = plain_rows(str(DIGITS / "corpus")), []
        for first in range(0, len(rows), 32):
            part = rows[first : first + 32]
            files = [Path(row["audio"]).read_bytes() for row in part]
            waves = [torch.from_numpy(decode_audio(file, codec.sample_rate)) for file in files]
            for row, codes in zip(part, codec.encode(waves), strict=True):
                kept = {"text": row["text"], "speaker": row["speaker"]}
                lines.append(json.dumps(kept | {"snac_codes": [c.tolist() for c in codes]}))
            print(f"encoded {len(lines)}/{len(rows)} recordings")
        cache.with_suffix(".part").write_text("\n".join(lines) + "\n", "utf-8")
        cache.with_suffix(".part").replace(cache)
    layout = TokenLayout(len(tokenizer), codec.codebook_size, codec.strides)
    return build_training_set(
        [str(cache)], layout, tokenizer, LONGEST, SPEECH_HELD_OUT, eval_rows=10**6, seed=0
    )


@torch.no_grad()
def begin(arm: str, base: PreTrainedModel, codec: Codec, seed: int) -> SpeechLM:
    """A copy of the base with the codec's tokens added, their rows as the arm has them."""
    books = [part.codebook.weight for part in codec.model.quantizer.quantizers]
    wanted = books if arm == "codebook" else None
    model = extend(
        copy.deepcopy(base), build_tokenizer(), codec.codebook_size, codec.strides, seed, wanted
    )
    if arm == "mean_resizing":
        other = copy.deepcopy(base)
        torch.manual_seed(seed)
        other.resize_token_embeddings(len(model.head), mean_resizing=True)
        [table] = model.tables  # the base ties its embeddings
        table.copy_(other.get_input_embeddings().weight)
    return model


def fine_tune(
    model: SpeechLM, data: TrainingSet, steps: list[int], options: argparse.Namespace, seed: int
) -> list[list[float]]:
    """Held-out loss and that of each level after `steps`, with the training job's own learner."""
    # Its Collectives asks Ray who it is.
    alone: Any = SimpleNamespace(rank=0, world=1, device=torch.device("cpu"))
    peak, curve, started = options.learning_rate, [], time.monotonic()
    learner = Learner(
        model, alone, strategy="ddp", precision="float32", compile_layers=False,
        learning_rate=peak, weight_decay=WEIGHT_DECAY,
    )  # fmt: skip
    evaluation = [data.batch(row, 0) for row in pack(data.lengths, data.evaluation, LONGEST)]
    plan = plan_rows(data.lengths, data.train, options.batch_tokens, seed)
    for step in range(steps[-1] + 1):
        if step > 0:
            batch = data.batch(next(plan), 0)
            (learner.loss(batch, last=True).loss.sum() / len(batch.targets)).backward()
            norm = learner.update(learning_rate(step - 1, peak, WARMUP, steps[-1]), CLIP_NORM)
            assert math.isfinite(norm), f"gradient norm {norm} in step {step}"
        if step in steps:
            model.eval()
            sums = [learner.evaluate(batch) for batch in evaluation]
            model.train()
            loss, count = sum(part.loss for part in sums), sum(part.count for part in sums)
            curve.append([float(loss.sum() / count.sum()), *(loss / count).tolist()])
            figures = "  ".join(f"{figure:.4f}" for figure in curve[-1])
            print(f"  step {step}: {figures}  ({time.monotonic() - started:.0f} s)")
    return curve


def show(title: str, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in [header, ["---"] * len(header), *rows]]
    print("\n".join(["", title, "", *lines]))


def report(curves: NDArray[np.float64], steps: list[int]) -> None:
    """Print what `curves` `[arms, seeds, steps, 1 + levels]` say; the loss is before the levels."""

    def spread(values: NDArray[np.float64]) -> list[list[str]]:
        parts = zip(ARMS, values.mean(1), values.min(1), values.max(1), strict=True)
        cell = "{:.3f} ({:.3f} to {:.3f})".format
        return [[arm, *map(cell, *figures)] for arm, *figures in parts]

    seeds, levels = curves.shape[1], curves.shape[3] - 1
    title = f"Held-out loss, nats per token: mean of {seeds} seeds (lowest to highest)"
    show(title, ["rows", *(f"step {step}" for step in steps)], spread(curves[..., 0]))
    header = ["rows", *(f"level {level}" for level in range(levels))]
    show(f"The same by level, step {steps[-1]}", header, spread(curves[:, :, -1, 1:]))
    gaps = []
    for one, other in [(1, 0), (0, 2), (1, 2)]:
        for at in sorted({len(steps) // 2, len(steps) - 1}):
            gap = curves[one, :, at, 0] - curves[other, :, at, 0]
            figures = [f"{value:+.4f}" for value in [*gap, gap.mean()]]
            gaps.append([f"{ARMS[one]} - {ARMS[other]}", steps[at], *figures])
    header = ["rows", "step", *(f"seed {seed}" for seed in range(seeds)), "mean"]
    show("Differences by seed: same base, same data in the same order", header, gaps)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    flag = parser.add_argument
    flag("--base", choices=("text", "untrained"), default="text", help="what is fine-tuned")
    flag("--pretrain-steps", type=int, default=400, help="steps of 2,048 bytes of text")
    flag("--steps", type=int, default=150, help="steps of fine-tuning")
    flag("--batch-tokens", type=int, default=640, help="tokens of such a step")
    flag("--learning-rate", type=float, default=1e-3, help="its peak in fine-tuning")
    flag("--eval-every", type=int, default=25, help="steps between evaluations")
    flag("--seeds", type=int, default=3, help="runs per arm: first values and order of data")
    options = parser.parse_args(argv)
    sys.stdout.reconfigure(line_buffering=True)  # progress, also into a file
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    BENCH.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    tokenizer, codec = build_tokenizer(), load_codec(str(DIGITS / "codec"))
    data = speech(codec, tokenizer)
    base = build_model(tokenizer, hidden_size=256, layers=6, seed=0).train()
    text = learn_text(base, tokenizer, options.pretrain_steps) if options.base == "text" else None
    steps = [*range(0, options.steps, options.eval_every), options.steps]
    curves: dict[str, list[list[list[float]]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:
            print(f"{arm}, seed {seed}: held-out loss, and by level")
            model = begin(arm, base, codec, seed)
            curves[arm].append(fine_tune(model, data, steps, options, seed))
    versions = {module.__name__: str(module.__version__) for module in (torch, transformers)}
    versions |= {"python": platform.python_version()}
    command = " ".join(["python", "benchmarks/new_rows.py", *argv])
    seconds = round(time.monotonic() - started)
    result = {"command": command, "seconds": seconds, "machine": platform.platform()}
    result |= {"versions": versions, "settings": vars(options), "text": text}
    result |= {"data": data.summary, "steps": steps, "curves": curves}
    output = BENCH / ("new_rows.json" if text else "new_rows-untrained.json")
    output.write_text(json.dumps(result) + "\n", "utf-8")
    report(np.array(list(curves.values())), steps)
    print(f"\n{output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
