"""The speech LM under training: wrapping it, and the optimizer step.

Owns DDP, FSDP2 and torch.compile wrapping, LoRA adapters, AdamW's parameter groups, and the full
state dict, which any number of workers can resume from. Owns the weighting of a step: gradients of
summed losses, divided once by the weighted target count over all ranks and accumulated rows. No
step waits for the device: its results stay there until they are read. Knows nothing about data,
logging or where checkpoints are stored, and needs neither Ray nor the codec. The rows of a step and
its learning rate are the training loop's.
"""

import logging
import os
import shutil
import sysconfig
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from sheen.codec.transfer import to_device
from sheen.lm.attention.packed import check_isolation
from sheen.lm.batching import Batch
from sheen.lm.loss import LossSums
from sheen.lm.model import SpeechLM
from sheen.lm.precision import Precision, dtype_of
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.metrics import MetricsWindow, loss_sums
from sheen.train.learning.optimizers import Divergence, on_host
from sheen.train.learning.settings import Strategy

logger = logging.getLogger(__name__)

WEIGHT_DECAY = 0.01
"""Weight decay of matrices; norms and biases have none."""
CLIP_NORM = 1.0
"""Largest gradient norm."""
LORA_ALPHA = 32
"""Adapters count LORA_ALPHA / rank times."""

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Learner:
    """Weights are float32 whatever the arithmetic's precision is.

    `module(batch)` gives the loss; `model` is the same model for evaluation and saving.
    """

    def __init__(
        self,
        model: SpeechLM,
        group: Collectives,
        *,
        strategy: Strategy,
        precision: Precision,
        compile_layers: bool,
        learning_rate: float,
        weight_decay: float = WEIGHT_DECAY,
    ) -> None:
        self.model = model
        self._group = group
        dtype = dtype_of(precision, group.device)
        self._sharded = strategy == "fsdp" and group.world > 1
        self._autocast = dtype == torch.bfloat16 and not self._sharded
        if not self._sharded:
            self.model.to(group.device)  # sharding moves layer by layer
        self.model.eval()
        with self._precision():
            check_isolation(self.model.lm)
        self.model.prepare_training()
        self.model.train()
        layers = _layers(model)
        if compile_layers:
            for layer in layers:
                layer.compile()
        self.module: nn.Module = model
        if self._sharded:
            self._shard(layers, dtype)
        else:
            self.module = group.data_parallel(model)
        self.optimizer = torch.optim.AdamW(
            _groups(model, weight_decay),
            lr=learning_rate,
            betas=(0.9, 0.95),
            fused=True,  # on CPUs too: many times faster than the loop over tensors
        )
        self._divergence = Divergence(group.device)

    def _shard(self, layers: list[nn.Module], dtype: torch.dtype) -> None:
        """FSDP2: every layer by itself, the embeddings with the root.

        The root is the speech model, whose forward reads rows of the output embedding: they are
        whole while it runs.
        """
        mesh = init_device_mesh(self._group.device.type, (self._group.world,))
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if dtype == torch.bfloat16 else None,
            reduce_dtype=torch.float32,
        )
        for layer in [*layers, self.model]:
            fully_shard(layer, mesh=mesh, mp_policy=policy)

    def loss(self, batch: Batch, *, last: bool, guided: bool = False) -> LossSums:
        """The loss of a row; gradients are exchanged in the backward pass of a step's last row."""
        self._exchange(last)
        with self._precision():
            sums: LossSums = self.module(batch.to(self._group.device), guided)
        return sums

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> LossSums:
        # Sharded layers gather their weights only when called through their wrapper.
        module = self.module if self._sharded else self.model
        with self._precision():
            sums: LossSums = module(batch.to(self._group.device))
        return sums

    def _precision(self) -> AbstractContextManager[Any]:
        if not self._autocast:
            return nullcontext()
        return torch.autocast(self._group.device.type, torch.bfloat16)

    def _exchange(self, wanted: bool) -> None:
        if isinstance(self.module, DistributedDataParallel):
            # What its no_sync() sets; a context would have to span the backward pass.
            self.module.require_backward_grad_sync = wanted
        elif isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(wanted)

    def update(self, rate: float, clip_norm: float = CLIP_NORM) -> Tensor:
        """One optimizer step from the accumulated gradients; returns their norm before clipping,
        which is on the device: reading it waits for the step.

        After the first norm that is not finite no step changes anything, see `Divergence`.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self._divergence.watch(norm, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and optimizer state as of now, unsharded, in main memory; later steps do not
        change them.

        Every rank must call it; only the first gets the full state.
        """
        # Weights first: that leaves a sharded model's parameters as the optimizer knows them.
        weights = self.weights()
        optimizer: dict[str, Any] = get_optimizer_state_dict(
            self.model, self.optimizer, options=WHOLE
        )
        return weights, self._copied(optimizer)

    def weights(self) -> dict[str, Tensor]:
        """As `state`, the weights alone: a third of it."""
        weights: dict[str, Any] = get_model_state_dict(self.model, options=WHOLE)
        # Gathered name by name, a table that two share would be there twice.
        names: dict[int, str] = {}
        for name, part in self.model.named_parameters(remove_duplicate=False):
            if name in weights:
                weights[name] = weights[names.setdefault(id(part), name)]
        return self._copied(weights)

    def _copied(self, state: dict[str, Any]) -> dict[str, Any]:
        """What torch gathered, as a copy; from a GPU it is one already."""
        if self._group.device.type == "cpu":
            state = on_host(state)
        return state

    def load_optimizer(self, state: dict[str, Any]) -> None:
        set_optimizer_state_dict(
            self.model, self.optimizer, state, options=StateDictOptions(full_state_dict=True)
        )


def take_step(
    learner: Learner,
    group: Collectives,
    window: MetricsWindow,
    rows: Sequence[Batch],
    *,
    weights: Sequence[float],
    guide_weight: float,
    rate: float,
    seed: int,
) -> Tensor:
    """One step on this rank's rows, counted in the window; returns the gradient norm, equal on all
    ranks, see `Learner.update`.

    weights: those of the codec's levels. guide_weight: weight of guided attention's mean over all
    targets. seed: seed of dropout for this step and rank.
    """
    counts = torch.tensor([row.targets.counts for row in rows], dtype=torch.float64).sum(0)
    levels = torch.tensor(weights, dtype=torch.float64)
    # Gradients are averaged over ranks; the loss is a weighted mean over all of their targets.
    counts = group.sum(counts)
    scale = levels * group.world / (levels @ counts)
    scale = to_device(scale.float(), group.device)
    guide_scale = to_device((guide_weight * group.world / counts.sum()).float(), group.device)
    torch.manual_seed(seed)  # independent of earlier computations
    for index, row in enumerate(rows):
        sums = learner.loss(row, last=index + 1 == len(rows), guided=guide_weight > 0)
        if sums.guide is None:
            torch.autograd.backward(sums.loss, scale)
        else:
            torch.autograd.backward([sums.loss, sums.guide], [scale, guide_scale])
        window.add(loss_sums(sums, row.tokens))
    return learner.update(rate)


def compiles(asked: bool | None, device: torch.device) -> bool:
    """Whether a learner on that device compiles its layers: as asked, else on a GPU.

    Elementwise kernels take four fifths of a step there unless they are fused (an estimate).
    Compiling needs a C compiler and Python's headers: without them only --compile asks for it.
    """
    if asked is not None or device.type != "cuda":
        return bool(asked)
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    if compiler and headers:
        return True
    missing = "Python's headers (python3-dev)" if compiler else "a C compiler (gcc or clang)"
    logger.warning(
        "layers are not compiled, and training takes about twice as long, for want of %s on this "
        "machine: install that, or give --no-compile",
        missing,
    )
    return False


def _layers(model: SpeechLM) -> list[nn.Module]:
    """The base's blocks, which transformers names as those not to split."""
    names = set(model.lm._no_split_modules or ())
    return [module for module in model.lm.modules() if type(module).__name__ in names]


def _groups(model: SpeechLM, weight_decay: float) -> list[dict[str, Any]]:
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def add_adapters(
    model: SpeechLM, rank: int, alpha: int = LORA_ALPHA, *, tables: bool = True
) -> None:
    """LoRA on every linear layer of the body; the rest of the body is frozen.

    With `tables` the embedding tables are trained in full: for rows that are new there is nothing
    to adapt.
    """
    # Here, and not above: a second of every worker's start, which only adapters need.
    from peft import LoraConfig, inject_adapter_in_model

    whole = {id(table) for table in model.tables} if tables else set()
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear")
    inject_adapter_in_model(config, model.lm)
    for name, parameter in model.lm.named_parameters():
        parameter.requires_grad_("lora_" in name or id(parameter) in whole)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("LoRA of rank %d: %.1f M weights are trained", rank, learning / 1e6)
