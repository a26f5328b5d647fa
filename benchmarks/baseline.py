"""The baseline of the training benchmark: transformers' Trainer as most fine-tuning scripts use it.

Owns nothing but its arguments. The model computes its own loss over the whole vocabulary, batches
are padded to their longest row. What would cost time without training is switched off.
"""

import tempfile
from collections.abc import Sequence

from clock import Clock
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from workload import Clip, pad_batch

from sheen.codec.layout import TokenLayout


class _StepEnds(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_step_end(self, *_: object, **__: object) -> None:
        self._clock.step()


def train_baseline(
    lm: PreTrainedModel,
    clips: Sequence[Clip],
    layout: TokenLayout,
    clock: Clock,
    *,
    batch: int,
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    clip_norm: float,
) -> float:
    """One pass over the clips in the order they have; returns the mean loss of the steps."""

    def collator(clips: Sequence[Clip]) -> dict[str, Tensor]:
        padded = pad_batch(clips, layout)
        return {
            "input_ids": padded.input_ids,
            "attention_mask": padded.attention_mask,
            "labels": padded.labels,
        }

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch,
            num_train_epochs=1,
            # Clips were drawn independently, so their own order is random; and the same clips are
            # then warm-up here and in every other variant.
            train_sampling_strategy="sequential",
            optim=optimizer,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            weight_decay=weight_decay,
            adam_beta1=betas[0],
            adam_beta2=betas[1],
            max_grad_norm=clip_norm,
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,  # nothing to pin for without a GPU
            remove_unused_columns=False,
        )
        trainer = Trainer(
            model=lm,
            args=arguments,
            data_collator=collator,
            train_dataset=list(clips),  # type: ignore[arg-type]
            callbacks=[_StepEnds(clock)],
        )
        return float(trainer.train().training_loss)
