"""Trains the English voice on one GPU in minutes, without Ray: packs of codes -> a checkpoint.

Owns the clock (the learning rate's schedule ends when the minutes do, so that the weights are
annealed whatever the GPU's speed), and the files: everything written is cut into parts of a size
that any carrier takes. The model, the steps, the losses and the evaluation are those of the train
job. The same command resumes; SIGINT and SIGTERM save and end. Needs torch, transformers and
pyarrow; `--device cpu` is for rehearsal.
"""

import argparse
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from code_pack import MEGABYTE, Pack, read_pack
from gpu_budget import Budget
from gpu_state import StateParts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from sheen.codec.layout import AUDIO_START
from sheen.lm.batching import Batch
from sheen.lm.model import SpeechLM, extend
from sheen.lm.model_files import load_base, load_model, save_model, to_bfloat16
from sheen.lm.packing import plan_rows
from sheen.lm.precision import dtype_of
from sheen.rng import step_seed
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.held_out import held_out_metrics
from sheen.train.learning.learner import Learner, take_step
from sheen.train.learning.metrics import (
    MetricsWindow,
    Speed,
    console_line,
    describe_losses,
    loss_metrics,
)
from sheen.train.learning.metrics_log import MetricsLog
from sheen.train.learning.settings import (
    check_guide_weight,
    check_level_weights,
    guide_weight,
    learning_rate,
    level_weights,
)
from sheen.train.learning.training_set import with_noise

CHECKPOINT = "checkpoint"
FIXED = (
    "seed", "batch_tokens", "accumulation", "learning_rate", "warmup_steps", "schedule",
    "level_weights", "level_weights_steps", "guided_attention", "guided_attention_steps",
    "history_noise",
)  # fmt: skip
"""What a resumed run may not change, besides the codes and the precision."""


def open_model(base: Path, pack: Pack, seed: int) -> tuple[SpeechLM, Any]:
    """A checkpoint as it is, or a base with the codec's tokens, as the train job opens them.

    A base without weights starts at random, so that only its small files need to travel.
    """
    if not (base / "config.json").is_file():
        raise ValueError(f"--base {base}: no folder of a model, which has a config.json")
    layout = pack.data.layout
    tokenizer = AutoTokenizer.from_pretrained(base)
    if AUDIO_START in tokenizer.get_vocab():
        return load_model(base, layout, pack.info["softmax"])
    if any(base.glob("*.safetensors")):
        lm, tokenizer = load_base(str(base))
    else:
        torch.manual_seed(seed)
        lm = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.float32)
    codebooks = [torch.from_numpy(table) for table in pack.codebooks]
    model = extend(lm, tokenizer, layout.codebook_size, layout.strides, seed, codebooks)
    if model.layout != layout:
        raise ValueError(f"--base {base}: the codes were packed for a base of another tokenizer")
    model.softmax = pack.info["softmax"]
    return model, tokenizer


def ahead(items: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
    """The same, each made in a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items)
        while True:
            item = waiting.result()
            waiting = pool.submit(next, items)
            yield item


class Run:
    """One part of a run."""

    def __init__(self, args: argparse.Namespace, pack: Pack) -> None:
        self.args, self.pack, self.data = args, pack, pack.data
        self._check()
        self.group = Collectives(torch.device(args.device))
        # What it means here: `auto` on another device is another arithmetic.
        precision = str(dtype_of(args.precision, self.group.device)).removeprefix("torch.")
        self.fixed = {"codes": self.data.digest(), "precision": precision}
        self.fixed |= {name: getattr(args, name) for name in FIXED}
        torch.manual_seed(args.seed)
        self.model, self.tokenizer = open_model(args.base, pack, args.seed)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.parts = StateParts(args.output / "state", int(args.part_mb * MEGABYTE))
        state = self.parts.load()
        self._check_same(state)
        if state:
            self.model.load_state_dict(state["weights"])
        self.learner = Learner(
            self.model,
            self.group,
            strategy="ddp",
            precision=args.precision,
            compile_layers=args.compile,
            learning_rate=args.learning_rate,
        )
        self.window = MetricsWindow(self.group)
        self.speed = Speed(self.model, self.group.device, world=1)
        self.step, rows = 0, [self.data.summary]
        self.norms: list[torch.Tensor] = []
        """Of the steps since they were last read."""
        self.norm = 0.0
        if state:
            self.learner.load_optimizer(state["optimizer"])
            self.window.load_state(state["window"])
            self.step, rows = state["step"], state["rows"]
            say(f"resuming after step {self.step}")
        seconds = None if args.minutes is None else 60 * args.minutes
        self.budget = Budget(args.max_steps, seconds, state and state["budget"])
        args.output.mkdir(parents=True, exist_ok=True)
        self.log = MetricsLog(str(args.output.resolve()), rows, writes=True)

    def _check(self) -> None:
        args, data = self.args, self.data
        longest = int(data.lengths[data.train].max())
        if data.references is not None:
            longest = max(longest, int(data.lengths[data.references.first :].max()))
        if longest > args.batch_tokens:
            raise ValueError(f"--batch-tokens {args.batch_tokens}: an utterance has {longest}")
        check_guide_weight(args.guided_attention, args.guided_attention_steps)
        check_level_weights(args.level_weights, args.level_weights_steps, data.layout.levels)

    def _check_same(self, state: dict[str, Any] | None) -> None:
        now = self.fixed
        before = state["fixed"] if state else now
        changed = [
            f"{name} was {before[name]}, now {now[name]}"
            for name in now
            # A state of a version that did not keep a setting says nothing of it.
            if name in before and before[name] != now[name]
        ]
        if changed:
            raise ValueError(
                f"--output {self.args.output} holds a run started otherwise: {'; '.join(changed)}. "
                "Give the same values to resume it, or another --output"
            )

    def steps(self) -> Iterator[list[Batch]]:
        """The rows of the steps to come, without end."""
        args, data = self.args, self.data
        items = partial(data.items, args.seed)
        numbered = enumerate(plan_rows(data.lengths, items, args.batch_tokens, args.seed))
        numbered = islice(numbered, self.step * args.accumulation, None)
        while True:
            yield [
                with_noise(
                    data.batch(row, self.pad_id, args.batch_tokens),
                    data.layout,
                    args.history_noise,
                    args.seed,
                    number,
                )
                for number, row in islice(numbered, args.accumulation)
            ]

    def train(self, stopped: Callable[[], bool]) -> None:
        """To the end of the budget, or until `stopped`; saves. ValueError where it diverges."""
        args = self.args
        evaluated = saved = time.monotonic()
        steps = ahead(self.steps())
        while not self.budget.is_over(self.step) and not stopped():
            self._take_step(next(steps))
            now = time.monotonic()
            if now - evaluated >= args.eval_seconds or self.budget.is_over(self.step):
                self._record()
                evaluated = time.monotonic()
            if now - saved >= 60 * args.save_minutes:
                self.save()
                saved = time.monotonic()
        steps.close()
        self.save()
        if not self.budget.is_over(self.step):
            say(f"stopped after step {self.step}, saved; the same command resumes")

    def _take_step(self, rows: list[Batch]) -> None:
        args = self.args
        norm = take_step(
            self.learner,
            self.group,
            self.window,
            rows,
            weights=level_weights(
                args.level_weights, args.level_weights_steps, self.step, self.data.layout.levels
            ),
            guide_weight=guide_weight(
                args.guided_attention, args.guided_attention_steps, self.step
            ),
            rate=learning_rate(
                self.step,
                args.learning_rate,
                args.warmup_steps,
                self.budget.total(self.step),
                args.schedule,
            ),
            seed=step_seed(args.seed, self.step, self.group.rank),
        )
        self.norms.append(norm)
        self.step += 1
        self.window.count_step()
        self.budget.count_step()

    def _read_norms(self) -> None:
        """Wait for the steps since the last time. ValueError where one of them diverged."""
        if not self.norms:
            return
        norms = torch.stack(self.norms).tolist()
        first = self.step - len(norms) + 1
        self.norms, self.norm = [], norms[-1]
        for step, norm in enumerate(norms, first):
            if not math.isfinite(norm):
                raise ValueError(
                    f"the gradient of step {step} is {norm}: training diverged. Start again with a "
                    f"lower --learning-rate (now {self.args.learning_rate:g}) and another --output"
                )

    def _record(self) -> None:
        self._read_norms()
        sums, seconds, steps = self.window.end()
        with self.window.paused():
            total = self.budget.total(self.step)
            row = {
                "event": "step",
                "step": self.step,
                "steps": total,
                "minutes": round(self.budget.spent() / 60, 3),
                **loss_metrics(sums),
                **self.speed.metrics(sums, seconds),
                "gradient_norm": round(self.norm, 4),
                "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
                "seconds_left": round(seconds / steps * (total - self.step)),
            }
            if len(self.data.evaluation):
                row |= held_out_metrics(
                    self.learner,
                    self.group,
                    self.data,
                    capacity=self.args.batch_tokens,
                    pad_id=self.pad_id,
                )
            self.log.add(row)
            say(console_line(row, describe_losses(row)))

    def save(self) -> None:
        """What resuming needs, and the checkpoint in half precision."""
        self._read_norms()
        with self.window.paused():
            weights, optimizer = self.learner.state()
            self.log.sync()
            self.parts.save(
                {
                    "weights": weights,
                    "optimizer": optimizer,
                    "step": self.step,
                    "rows": self.log.rows,
                    "window": self.window.state(),
                    "budget": self.budget.state(),
                    "fixed": self.fixed,
                },
                self.step,
            )
            folder = self.args.output / CHECKPOINT
            fresh = folder.with_suffix(".new")
            shutil.rmtree(fresh, ignore_errors=True)
            # Halved below, file by file.
            limit = int(2 * self.args.part_mb * MEGABYTE)
            save_model(self.model, self.tokenizer, fresh, weights, limit)
            to_bfloat16(fresh)
            (fresh / "sheen.json").write_text(json.dumps(self.pack.info, indent=2) + "\n", "utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)


def say(text: str) -> None:
    print(text, flush=True)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the English voice on one GPU, without Ray.")
    add = parser.add_argument
    add("--codes", type=Path, nargs="+", required=True, help="parts of a pack, in order")
    add("--base", type=Path, required=True, help="base model's folder, or a checkpoint's")
    add("--output", type=Path, required=True, help="an output that holds a run resumes it")
    lasting = parser.add_mutually_exclusive_group(required=True)
    lasting.add_argument("--minutes", type=float, help="of the whole run, saving at its end apart")
    lasting.add_argument("--max-steps", type=int, help="of the whole run")
    add("--device", default="cuda", help="(default: %(default)s)")
    add("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="the layers; default: on a GPU. It takes a minute",
    )
    add("--batch-tokens", type=int, default=16384, help="of a row (default: %(default)s)")
    add("--accumulation", type=int, default=1, help="rows a step (default: %(default)s)")
    add("--learning-rate", type=float, default=1e-3, help="peak (default: %(default)s)")
    add("--warmup-steps", type=int, default=200, help="(default: %(default)s)")
    add("--schedule", choices=["cosine", "wsd"], default="cosine")
    add(
        "--level-weights",
        type=lambda text: [float(weight) for weight in text.split(",")],
        help="of the codec's levels in the loss, coarse first: 3,1,0.3",
    )
    add("--level-weights-steps", type=int, help="steps that have them (default: all)")
    add("--guided-attention", type=float, default=0.0, help="see jobs/train.py (default: none)")
    add("--guided-attention-steps", type=int, help="steps that have it (default: all)")
    add("--history-noise", type=float, default=0.0, help="see jobs/train.py (default: none)")
    add("--seed", type=int, default=0)
    add("--eval-seconds", type=float, default=30.0, help="between evaluations (%(default)s)")
    add("--save-minutes", type=float, default=2.0, help="between saves (%(default)s)")
    add("--part-mb", type=float, default=15.0, help="largest file written (%(default)s)")
    args = parser.parse_args(argv)
    if args.compile is None:
        args.compile = args.device.startswith("cuda")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    disable_progress_bar()
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda found, _: received.append(found))
    try:
        Run(args, read_pack(args.codes)).train(lambda: bool(received))
    except ValueError as error:
        print(f"train_on_gpu.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
