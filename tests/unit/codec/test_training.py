"""A codec that learns: the published quantizer with losses, restarts, averages, files. No Ray."""

import copy
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from snac import SNAC
from torch import Tensor

from helpers.example import CODEC
from helpers.tiny_codec import TINY, tiny
from sheen.codec.info import CONFIG_FILE, WEIGHTS_FILE
from sheen.codec.snac import inference_copy, load_codec, open_codec
from sheen.codec.training import (
    CodecFiles,
    CodeUsage,
    TrainableCodec,
    WeightAverage,
    quantize,
    restart_unused,
)

CPU = torch.device("cpu")
# The shape of the published 32 kHz codec: four levels, and attention over 32 latents.
TINY_ATTENTION: dict[str, Any] = TINY | {
    "sampling_rate": 32000,
    "encoder_rates": [2, 3, 8, 8],
    "decoder_rates": [8, 8, 3, 2],
    # Attention has heads of 64 channels.
    "encoder_dim": 4,
    "decoder_dim": 64,
    "attn_window_size": 32,
    "vq_strides": [8, 4, 2, 1],
}
BLOCK = {24000: 512 * 4, 32000: 384 * 32}


@pytest.fixture(params=[TINY, TINY_ATTENTION], ids=["3 levels", "4 levels, attention"])
def model(request: pytest.FixtureRequest) -> SNAC:
    return tiny(request.param)


@pytest.fixture
def small() -> SNAC:
    return tiny()


def speech_like(model: SNAC, rows: int = 2, blocks: int = 2, seed: int = 1) -> Tensor:
    """Noise whose level changes, so that the latents are not all alike."""
    generator = torch.Generator().manual_seed(seed)
    samples = blocks * BLOCK[int(model.sampling_rate)]
    level = torch.linspace(0.01, 0.5, samples) * torch.linspace(1.0, 0.3, rows)[:, None]
    return level * torch.randn(rows, samples, generator=generator)


def latents_of(model: SNAC) -> Tensor:
    return model.encoder(speech_like(model)[:, None])


def touched(model: SNAC) -> set[str]:
    """Names of the parameters that a backward pass gave a gradient other than zero."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0
    }


def codebooks(model: SNAC) -> set[str]:
    return {f"quantizer.quantizers.{i}.codebook.weight" for i in range(model.n_codebooks)}


def step(model: SNAC, optimizer: torch.optim.Optimizer, audio: Tensor) -> list[Tensor]:
    """One optimizer step with the job's default weights; returns the vectors to restart from."""
    losses = TrainableCodec(model)(audio)
    total = 15 * losses.mel + losses.stft + 0.25 * losses.commitment + losses.codebook
    assert torch.isfinite(total)
    optimizer.zero_grad()
    torch.autograd.backward(total)
    optimizer.step()
    return losses.vectors


# The quantizer


@pytest.mark.parametrize("training", [True, False])
def test_training_quantizes_as_the_published_forward(model: SNAC, training: bool) -> None:
    model.train(training)
    latents = latents_of(model)
    published, codes = model.quantizer(latents)
    ours = quantize(model, latents)
    assert torch.equal(ours.latents, published)
    assert len(ours.codes) == len(codes)
    for found, wanted in zip(ours.codes, codes, strict=True):
        assert torch.equal(found, wanted)
    assert len({int(code) for level in codes for code in level.flatten()}) > 4


def test_levels_that_are_dropped_are_not_heard_and_still_learn(model: SNAC) -> None:
    latents = latents_of(model).detach()
    row = latents[:1].expand(model.n_codebooks, -1, -1)
    whole, part = quantize(model, row), quantize(model, row, torch.arange(model.n_codebooks) + 1)
    for a, b in zip(whole.codes + whole.vectors, part.codes + part.vectors, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.codebook, part.codebook)
    assert torch.equal(whole.latents[-1], part.latents[-1])
    published = torch.zeros_like(latents[:1])
    for level, quantizer in enumerate(model.quantizer.quantizers):
        codes = whole.codes[level][:1]
        heard = quantizer.out_proj(quantizer.decode_code(codes))
        published = published + heard.repeat_interleave(quantizer.stride, dim=-1)
        torch.testing.assert_close(part.latents[level : level + 1], published)


def test_as_many_rows_as_asked_for_lack_levels(model: SNAC) -> None:
    dropping = TrainableCodec(model, quantizer_dropout=0.25)
    kept = dropping._levels_kept(4000)
    assert set(kept.tolist()) == set(range(1, model.n_codebooks + 1))
    assert (kept < model.n_codebooks).float().mean() == pytest.approx(0.25, abs=0.05)


def test_of_a_codec_with_one_level_none_can_be_dropped() -> None:
    alone = SNAC(**TINY | {"vq_strides": [1]})
    with pytest.raises(ValueError, match="two levels or more"):
        TrainableCodec(alone, quantizer_dropout=0.3)
    assert TrainableCodec(alone).quantizer_dropout == 0


def test_training_has_the_published_gradient(model: SNAC) -> None:
    """The straight-through estimator, level by level: the same slope at the encoder's output."""
    latents = latents_of(model).detach()
    slopes = []
    for forward in (lambda x: model.quantizer(x)[0], lambda x: quantize(model, x).latents):
        leaf = latents.clone().requires_grad_()
        torch.autograd.backward(forward(leaf).square().sum())
        slopes.append(leaf.grad)
    torch.testing.assert_close(slopes[0], slopes[1])


def test_vectors_are_what_the_codes_were_chosen_for(model: SNAC) -> None:
    quantized = quantize(model, latents_of(model))
    codes_per_level = [level.numel() for level in quantized.codes]
    finest = codes_per_level[-1]
    assert codes_per_level == [finest // stride for stride in model.vq_strides]
    for quantizer, codes, vectors in zip(
        model.quantizer.quantizers, quantized.codes, quantized.vectors, strict=True
    ):
        assert vectors.shape == (codes.numel(), quantizer.codebook_dim)
        assert not vectors.requires_grad
        # Nearest in direction, as SNAC looks codes up, in the order of the flattened codes.
        likeness = F.normalize(vectors) @ F.normalize(quantizer.codebook.weight).T
        chosen = likeness.gather(1, codes.reshape(-1, 1))[:, 0]
        torch.testing.assert_close(chosen, likeness.max(dim=1).values)


def test_the_losses_are_the_distances_to_the_codes(model: SNAC) -> None:
    quantized = quantize(model, latents_of(model))
    distances = [
        F.mse_loss(vectors, quantizer.codebook.weight[codes.flatten()])
        for quantizer, codes, vectors in zip(
            model.quantizer.quantizers, quantized.codes, quantized.vectors, strict=True
        )
    ]
    torch.testing.assert_close(quantized.commitment, torch.stack(distances).sum())
    torch.testing.assert_close(quantized.codebook, quantized.commitment)


def test_commitment_moves_the_encoder_and_no_code(model: SNAC) -> None:
    torch.autograd.backward(quantize(model, latents_of(model)).commitment)
    moved = touched(model)
    assert not moved & codebooks(model)
    assert any(name.startswith("encoder.") for name in moved)
    for level in range(model.n_codebooks):
        assert any(f"quantizers.{level}.in_proj" in name for name in moved)


def test_the_codebook_loss_moves_codes_and_nothing_else(model: SNAC) -> None:
    torch.autograd.backward(quantize(model, latents_of(model)).codebook)
    assert touched(model) == codebooks(model)


def test_gradients_reach_every_parameter(model: SNAC) -> None:
    losses = TrainableCodec(model)(speech_like(model))
    torch.autograd.backward(
        losses.mel + losses.stft + losses.waveform + losses.commitment + losses.codebook
    )
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    parts = {name.split(".")[0] for name in touched(model)}
    assert parts == {"encoder", "quantizer", "decoder"}
    assert codebooks(model) <= touched(model)


def test_a_trainable_codec_sounds_like_the_published_forward(model: SNAC) -> None:
    """TrainableCodec exchanges the activations: neither audio nor names may change."""
    audio = speech_like(model, rows=1, blocks=1)
    names = list(model.state_dict())
    torch.manual_seed(3)
    published, codes = model(audio[:, None])
    trainable = TrainableCodec(model)
    assert list(model.state_dict()) == names
    torch.manual_seed(3)
    ours = trainable(audio)
    for found, wanted in zip(ours.codes, codes, strict=True):
        assert torch.equal(found, wanted)
    terms = trainable.distances.spectral(published[:, 0], audio)
    torch.testing.assert_close((ours.mel, ours.stft), (terms.mel, terms.stft))


def test_silence_trains_without_a_number_that_is_none(small: SNAC) -> None:
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-3)
    for _ in range(2):
        step(small, optimizer, torch.zeros(2, 4096))
    for name, parameter in small.named_parameters():
        assert torch.isfinite(parameter).all(), name


@pytest.mark.slow
def test_a_few_steps_lower_the_loss(model: SNAC) -> None:
    audio = speech_like(model, rows=1, blocks=1)
    trainable = TrainableCodec(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    mels = []
    for _ in range(8):
        losses = trainable(audio)
        mels.append(losses.mel.item())
        optimizer.zero_grad()
        torch.autograd.backward(15 * losses.mel + losses.commitment + losses.codebook)
        optimizer.step()
    assert all(math.isfinite(mel) for mel in mels)
    assert mels[-1] < 0.95 * mels[0]


PUBLISHED_SHAPE_STEPS = """
import json, resource, torch
from snac import SNAC
from sheen.codec.training import TrainableCodec

torch.set_num_threads(1)
torch.manual_seed(0)
model = SNAC(sampling_rate=24000, encoder_dim=48, encoder_rates=[2, 4, 8, 8], decoder_dim=1024,
             decoder_rates=[8, 8, 4, 2], attn_window_size=None, vq_strides=[4, 2, 1])
trainable = TrainableCodec(model)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-4, betas=(0.8, 0.99))
before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
audio = 0.1 * torch.randn(1, 24576)
totals, mels = [], []
for _ in range(2):
    losses = trainable(audio)
    total = 15 * losses.mel + losses.stft + 0.25 * losses.commitment + losses.codebook
    torch.autograd.backward(total)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    totals.append(total.item())
    mels.append(losses.mel.item())
print(json.dumps({
    "parameters": sum(weight.numel() for weight in before.values()),
    "totals": totals,
    "mels": mels,
    "unmoved": [name for name, w in model.named_parameters() if torch.equal(w, before[name])],
    "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
}))
"""


@pytest.mark.soak
def test_the_published_shape_trains_in_the_memory_of_a_laptop() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PUBLISHED_SHAPE_STEPS], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 19e6 < found["parameters"] < 21e6
    assert all(math.isfinite(total) for total in found["totals"])
    assert found["mels"][-1] < found["mels"][0]
    assert found["unmoved"] == []
    assert found["peak_bytes"] < 6e9


# Codes in use


def unused(usage: CodeUsage, level: int) -> list[int]:
    codes, found = usage.oldest(level)
    ages = usage.age[level][codes].tolist()
    assert ages == sorted(ages, reverse=True)
    indices: list[int] = codes[found].tolist()
    return indices


def test_ages_of_codes_are_counted_in_codes_of_the_level() -> None:
    usage = CodeUsage(levels=2, size=4, patience=2.0)
    usage.count([torch.tensor([[0, 1], [1, 0]]), torch.tensor([3])])
    assert usage.age.tolist() == [[0, 0, 4, 4], [1, 1, 1, 0]]
    usage.count([torch.tensor([[2, 1], [1, 1]]), torch.tensor([3])])
    assert usage.age.tolist() == [[4, 0, 0, 8], [2, 2, 2, 0]]
    assert unused(usage, 0) == [], "8 = 2.0 * 4 is still within patience"
    usage.count([torch.tensor([1]), torch.tensor([3, 0])])
    assert usage.age.tolist() == [[5, 0, 1, 9], [0, 4, 4, 0]]
    assert unused(usage, 0) == [3]
    assert unused(usage, 1) == []


def test_the_code_that_is_unused_longest_is_restarted_first() -> None:
    usage = CodeUsage(levels=1, size=5, patience=0.5)  # more than 2 codes ago
    usage.age[0] = torch.tensor([3, 9, 2, 9, 5])
    assert unused(usage, 0) == [1, 3, 4, 0]


def test_the_usage_of_codes_outlives_a_checkpoint() -> None:
    usage = CodeUsage(levels=1, size=4, patience=1.0)
    usage.count([torch.tensor([0, 2, 2, 0, 0])])
    usage.restarted[0] = 7
    state = copy.deepcopy(usage.state_dict())
    usage.count([torch.tensor([1])])
    again = CodeUsage(levels=1, size=4, patience=1.0)
    again.load_state_dict(state)
    assert unused(again, 0) == [1, 3]
    assert again.restarted.tolist() == [7]
    again.count([torch.tensor([1])])
    assert torch.equal(again.age, usage.age)


# Restarts


class Run:
    """A small codec after two steps, with all that a restart touches."""

    def __init__(self, unused: dict[int, list[int]]) -> None:
        self.model = tiny()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.average = WeightAverage(self.model, 0.9)
        for seed in range(2):
            self.vectors = step(
                self.model, self.optimizer, speech_like(self.model, blocks=4, seed=seed)
            )
            self.average.update(self.model)
        self.usage = CodeUsage(3, 64, patience=1.0)
        for level, codes in unused.items():
            self.usage.age[level, codes] = 65
        for level in range(3):  # moments of every row, to see which are forgotten
            for moment in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[self.codes(level)][moment].add_(1.0)

    def codes(self, level: int) -> torch.nn.Parameter:
        return self.model.quantizer.quantizers[level].codebook.weight

    def averaged(self, level: int) -> Tensor:
        return self.average.model.quantizer.quantizers[level].codebook.weight

    def restart(self, seed: int = 0, allowed: bool = True) -> int:
        moved = restart_unused(
            self.model,
            self.average.model,
            self.optimizer,
            self.usage,
            self.vectors,
            torch.Generator().manual_seed(seed),
            torch.tensor(allowed),
        )
        return int(moved)


UNUSED = {0: [5], 1: [0, 7, 63], 2: [1, 2, 3, 4]}


@pytest.mark.slow
def test_unused_codes_move_to_where_the_encoder_is() -> None:
    run = Run(UNUSED)
    before = [run.codes(level).detach().clone() for level in range(3)]
    averages = [run.averaged(level).detach().clone() for level in range(3)]
    others = {
        name: weight.detach().clone()
        for name, weight in run.model.named_parameters()
        if "codebook" not in name
    }
    assert run.restart(allowed=False) == 0
    assert all(torch.equal(run.codes(level), before[level]) for level in range(3))
    assert run.restart() == 8
    assert run.usage.restarted.tolist() == [1, 3, 4]
    assert run.usage.age.max() == 0
    for level, moved in UNUSED.items():
        kept = [code for code in range(64) if code not in moved]
        assert torch.equal(run.codes(level)[kept], before[level][kept])
        assert torch.equal(run.averaged(level)[kept], averages[level][kept])
        rows = run.codes(level)[moved]
        assert torch.equal(run.averaged(level)[moved], rows)
        origins = [
            [int(at) for at in (run.vectors[level] == row).all(dim=1).nonzero()] for row in rows
        ]
        assert all(origins), "each is a vector of the step"
        assert len({at[0] for at in origins}) == len(moved), "and each another one"
        state = run.optimizer.state[run.codes(level)]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert (state[moment][moved] == 0).all()
            assert (state[moment][kept] >= 0.5).all()
        assert state["step"] == 2
    for name, weight in run.model.named_parameters():
        if name in others:
            assert torch.equal(weight, others[name]), name
    assert run.restart() == 0, "a code that moved has its patience before it"


@pytest.mark.slow
def test_a_moved_code_is_chosen_by_the_vector_it_moved_to() -> None:
    run = Run(UNUSED)
    run.restart()
    for level, moved in UNUSED.items():
        rows = run.codes(level)[moved]
        _, chosen = run.model.quantizer.quantizers[level].decode_latents(rows.T[None])
        assert chosen[0].tolist() == moved


def test_no_more_codes_move_than_there_are_vectors() -> None:
    run = Run({0: list(range(64)), 1: [], 2: []})
    assert len(run.vectors[0]) == 8
    run.usage.age[0, 50:] = 100
    assert run.restart() == 8
    assert (run.usage.age[0] == 0).nonzero().flatten().tolist() == list(range(50, 58))
    assert len(run.codes(0).detach().unique(dim=0)) == 64, "no two at one place"


@pytest.mark.slow
def test_restarts_are_a_function_of_the_seed() -> None:
    """Two ranks that gathered the same codes and vectors hold the same codec afterwards."""
    first, second, other = Run(UNUSED), Run(UNUSED), Run(UNUSED)
    torch.manual_seed(1)  # as a rank's own noise would leave it
    first.restart(seed=3)
    torch.manual_seed(2)
    second.restart(seed=3)
    other.restart(seed=4)
    for ours, theirs in ((first.model, second.model), (first.average, second.average)):
        for (name, tensor), twin in zip(
            ours.state_dict().items(), theirs.state_dict().values(), strict=True
        ):
            assert torch.equal(tensor, twin), name
    assert torch.equal(first.usage.age, second.usage.age)
    assert not torch.equal(first.codes(2), other.codes(2))


def test_restarting_before_the_first_step_needs_no_moments(small: SNAC) -> None:
    vectors = quantize(small, latents_of(small)).vectors
    optimizer = torch.optim.Adam(small.parameters())
    usage = CodeUsage(3, 64, patience=1.0)
    usage.age[0, 9] = 65
    average = WeightAverage(small, 0.9)
    assert restart_unused(small, average.model, optimizer, usage, vectors, torch.Generator()) == 1
    assert len(optimizer.state) == 0


# The average


def test_the_average_of_weights_is_its_formula(small: SNAC) -> None:
    average = WeightAverage(small, decay=0.2)
    weight = small.quantizer.quantizers[0].codebook.weight
    averaged = average.model.quantizer.quantizers[0].codebook.weight
    for value in (1.0, 2.0, 4.0, 8.0):
        with torch.no_grad():
            weight.fill_(value)
        average.update(small)
    # The first update is a copy: 1. Then the decays (1 + t) / (10 + t) = 2/11, and 3/12 and 4/13,
    # which are over the limit of 0.2.
    by_hand = 1 * 2 / 11 + 2 * 9 / 11
    by_hand = 0.2 * by_hand + 0.8 * 4
    by_hand = 0.2 * by_hand + 0.8 * 8
    assert averaged.unique().tolist() == [pytest.approx(by_hand)]
    assert weight.unique().tolist() == [8.0]


@pytest.mark.slow
def test_the_average_of_weights_covers_every_weight(model: SNAC) -> None:
    average = WeightAverage(model, decay=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        step(model, optimizer, speech_like(model, rows=1, blocks=1))
        average.update(model)
    for name, weight in average.model.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], msg=name)


@pytest.mark.slow
def test_the_average_of_weights_outlives_a_checkpoint(small: SNAC, tmp_path: Path) -> None:
    def change(model: SNAC, by: float) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(by)

    average = WeightAverage(small, decay=0.9)
    for by in (0.1, 0.2):
        change(small, by)
        average.update(small)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    again = WeightAverage(tiny(seed=5), decay=0.9)
    again.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    change(small, 0.3)
    average.update(small)
    again.update(small)
    for name, weight in average.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name


# Copies and files


@pytest.mark.slow
@pytest.mark.parametrize("of_average", [False, True])
def test_a_copy_for_inference_leaves_the_original_trainable(model: SNAC, of_average: bool) -> None:
    """A deep copy would not: folding its weights broke the original's forward."""
    average = WeightAverage(model, 0.9)
    audio = speech_like(model, rows=1, blocks=1)
    config = TINY if model.n_codebooks == 3 else TINY_ATTENTION
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    source = average.model if of_average else model
    before = {name: weight.clone() for name, weight in source.state_dict().items()}
    codec = inference_copy(source, config, CPU)
    (codes,) = codec.encode([audio[0]])
    with torch.inference_mode():
        wanted = source.encode(audio[:, None])
    for found, level in zip(codes, wanted, strict=True):
        assert found.tolist() == level[0].tolist()
    assert source.training
    assert list(source.state_dict()) == list(before)
    for name, weight in source.state_dict().items():
        assert torch.equal(weight, before[name]), name
    step(model, optimizer, audio)
    average.update(model)
    assert any(
        not torch.equal(weight, before[name]) for name, weight in source.state_dict().items()
    )
    again = inference_copy(source, config, CPU)
    assert not torch.equal(
        again.decode([level[None] for level in codes]),
        codec.decode([level[None] for level in codes]),
    ), "the first copy is of its time"


OPEN_WITHOUT_US = """
import sys
sys.modules["sheen"] = None  # import sheen now raises
import torch
from snac import SNAC
found = []
for folder in sys.argv[2:]:
    model = SNAC.from_pretrained(folder)
    weights = torch.load(folder + "/pytorch_model.bin", weights_only=True)
    assert set(weights) == set(model.state_dict())
    dtypes = {str(tensor.dtype) for tensor in weights.values()}
    with torch.inference_mode():
        codes = model.encode(torch.linspace(-0.5, 0.5, 4096)[None, None])
    found.append({"dtypes": sorted(dtypes), "codes": codes})
torch.save(found, sys.argv[1])
"""


@pytest.mark.slow
def test_the_published_package_opens_what_is_saved(small: SNAC, tmp_path: Path) -> None:
    folders = {dtype: tmp_path / "deep" / str(dtype) for dtype in (torch.float32, torch.float16)}
    for dtype, folder in folders.items():
        CodecFiles(TINY, dtype).write(folder, small.state_dict())
    command = [sys.executable, "-c", OPEN_WITHOUT_US, tmp_path / "found.pt", *folders.values()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    opened = torch.load(tmp_path / "found.pt", weights_only=True)
    for dtype, found in zip(folders, opened, strict=True):
        assert found["dtypes"] == [str(dtype)]
        kept = copy.deepcopy(small).to(dtype).float()
        with torch.inference_mode():
            wanted = kept.encode(torch.linspace(-0.5, 0.5, 4096)[None, None])
        for level, codes in zip(wanted, found["codes"], strict=True):
            assert torch.equal(level, codes)
    assert all(parameter.dtype == torch.float32 for parameter in small.parameters())
    size = (folders[torch.float16] / WEIGHTS_FILE).stat().st_size
    assert size < 3 * sum(weight.numel() for weight in small.state_dict().values())


def test_what_is_saved_is_opened_to_train_and_to_speak(small: SNAC, tmp_path: Path) -> None:
    CodecFiles(TINY, torch.float32).write(tmp_path, small.state_dict())
    again, config = open_codec(str(tmp_path))
    assert config == TINY
    assert list(again.state_dict()) == list(small.state_dict())
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, small.state_dict()[name]), name
    assert all(parameter.requires_grad for parameter in again.parameters())
    assert load_codec(str(tmp_path)).strides == (4, 2, 1)


def test_a_codec_in_half_precision_is_opened_in_full(small: SNAC, tmp_path: Path) -> None:
    CodecFiles(TINY, torch.float16).write(tmp_path, small.state_dict())
    again, _ = open_codec(str(tmp_path))
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    step(again, torch.optim.Adam(again.parameters()), speech_like(again, rows=1, blocks=1))


def test_the_example_codec_is_one_to_continue_from() -> None:
    model, config = open_codec(str(CODEC))
    assert config == json.loads((CODEC / CONFIG_FILE).read_text())
    published = SNAC.from_pretrained(str(CODEC))
    for name, weight in published.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight.float()), name


def test_from_scratch_takes_a_shape_and_no_weight(small: SNAC, tmp_path: Path) -> None:
    CodecFiles(TINY, torch.float32).write(tmp_path / "codec", small.state_dict())
    (tmp_path / "shape.json").write_text(json.dumps(TINY))
    opened = []
    for source in (tmp_path / "codec", tmp_path / "shape.json"):
        torch.manual_seed(7)
        model, config = open_codec(str(source), from_scratch=True)
        assert config == TINY
        opened.append(model.state_dict())
    for name, weight in opened[0].items():
        assert torch.equal(weight, opened[1][name]), name
    name = "quantizer.quantizers.0.codebook.weight"
    assert not torch.equal(opened[0][name], small.state_dict()[name])


def test_a_codec_that_is_none_is_named(small: SNAC, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing'?: no such folder"):
        open_codec(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        open_codec(str(tmp_path))
    with pytest.raises(ValueError, match="no such folder"):
        open_codec(str(tmp_path / "shape.json"), from_scratch=True)
    (tmp_path / "shape.json").write_text(json.dumps(TINY))
    with pytest.raises(ValueError, match=r"shape\.json'?: no such folder"):
        open_codec(str(tmp_path / "shape.json"))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1, 2]",
        "7",
        '{"colour": 1}',
        '{"vq_strides": 4}',
        '{"encoder_rates": []}',
        '{"attn_window_size": 32, "encoder_dim": 3, "decoder_dim": 3}',
        '{"decoder_dim": 4, "decoder_rates": [2, 2, 2, 2], "attn_window_size": null}',
    ],
)
@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_config_that_snac_refuses_is_named(
    small: SNAC, tmp_path: Path, text: str, from_scratch: bool
) -> None:
    CodecFiles(TINY, torch.float32).write(tmp_path, small.state_dict())
    (tmp_path / CONFIG_FILE).write_text(text)
    source = str(tmp_path / CONFIG_FILE) if from_scratch else str(tmp_path)
    with pytest.raises(ValueError, match="not a SNAC codec"):
        open_codec(source, from_scratch)


@pytest.mark.parametrize("damage", ["another shape", "cut", "pointer", "empty", "no tensors"])
def test_weights_that_do_not_fit_are_named(small: SNAC, tmp_path: Path, damage: str) -> None:
    CodecFiles(TINY, torch.float32).write(tmp_path, small.state_dict())
    weights = tmp_path / WEIGHTS_FILE
    if damage == "another shape":
        (tmp_path / CONFIG_FILE).write_text(json.dumps(TINY | {"codebook_size": 32}))
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "pointer":  # what git leaves of a large file
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    elif damage == "empty":
        weights.write_bytes(b"")
    else:
        torch.save([1, 2], weights)
    message = "is a Git LFS pointer" if damage == "pointer" else "not a SNAC codec"
    with pytest.raises(ValueError, match=message):
        open_codec(str(tmp_path))
