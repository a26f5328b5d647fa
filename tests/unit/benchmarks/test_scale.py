"""The scale model: its counts are the shapes', it agrees with what was measured, and its page."""

import sys
from itertools import pairwise

import pytest
import torch
from snac import SNAC
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperModel

from helpers.example import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import scale
from published import PUBLISHED
from scale_jobs import Load, Plan, attended, encode, plan_training, serve, step_parts
from scale_machines import (
    CODEC,
    EPYC_CORE,
    GENERATE,
    H100,
    MACHINES,
    P5,
    SHARES,
    TRAIN,
    TRANSCRIBE,
    Machine,
)
from scale_preparing import MODELS, prepare
from scale_shapes import BFLOAT16, FLOAT32, Base, Codec, Whisper
from workload import Shape, make_base

from sheen.engine.decode_step import attention_lengths

SECONDS = 32  # a whole number of frames
DEVICES = 1, 2, 8, 16, 64
TABLES = scale.tables()


def convolutions(module: nn.Module) -> list[float]:
    """FLOPs of every convolution that the module runs from now on."""
    flops: list[float] = []

    def conv(layer: nn.Conv1d, inputs: tuple[Tensor], output: Tensor) -> None:
        flops.append(2 * output.numel() * layer.in_channels // layer.groups * layer.kernel_size[0])

    def transposed(layer: nn.ConvTranspose1d, inputs: tuple[Tensor], output: Tensor) -> None:
        flops.append(2 * inputs[0].numel() * layer.out_channels * layer.kernel_size[0])

    for layer in module.modules():
        if isinstance(layer, nn.Conv1d):
            layer.register_forward_hook(conv)
        elif isinstance(layer, nn.ConvTranspose1d):
            layer.register_forward_hook(transposed)
    return flops


@pytest.mark.parametrize("dims", [(48, 1024), (16, 256)], ids=["published", "small"])
def test_the_codec_is_counted_as_torch_runs_it(dims: tuple[int, int]) -> None:
    config = PUBLISHED | {"encoder_dim": dims[0], "decoder_dim": dims[1]}
    codec = Codec.of(config)
    with torch.device("meta"):
        model = SNAC(**config)
        encoded = convolutions(model)
        model.encode(torch.empty(1, 1, SECONDS * codec.sample_rate))
        distances = codec.tokens_per_second * codec.codebook_size * codec.codebook_dim
        assert sum(encoded) / SECONDS + 2 * distances == pytest.approx(codec.encoding().flops)
        encoded.clear()
        latents = round(SECONDS * codec.latents_per_second)
        model.decoder(torch.empty(1, codec.width, latents))
    assert sum(encoded) / SECONDS == pytest.approx(codec.decoding().flops)


@pytest.mark.parametrize("model", MODELS[:2], ids=lambda model: model.name)
def test_the_asr_is_counted_as_torch_runs_it(model: Whisper) -> None:
    def linear(layer: nn.Linear, inputs: tuple[Tensor], output: Tensor) -> None:
        flops.append(2 * output.numel() * layer.in_features)

    config = WhisperConfig(
        vocab_size=model.vocabulary, num_mel_bins=model.mels, d_model=model.width,
        encoder_layers=model.encoder_layers, decoder_layers=model.decoder_layers,
        encoder_ffn_dim=4 * model.width, decoder_ffn_dim=4 * model.width,
        encoder_attention_heads=model.width // 64, decoder_attention_heads=model.width // 64,
    )  # fmt: skip
    with torch.device("meta"):
        whisper = WhisperModel(config).eval()
        flops = convolutions(whisper)
        for layer in whisper.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(linear)
        mels = torch.empty(1, model.mels, model.frames)
        encoded = whisper.encoder(mels)
        kept = 2 * 2 * model.decoder_layers * model.width**2 * model.positions
        scores = 2 * model.encoder_layers * 2 * model.positions**2 * model.width
        assert sum(flops) + kept + scores == pytest.approx(model.window(FLOAT32).flops)
        flops.clear()
        whisper.decoder(torch.zeros(1, 1, dtype=torch.long), encoder_hidden_states=encoded[0])
    # The table and the scores are no layers; the window's keys and values count for the window.
    rest = 2 * model.vocabulary * model.width
    rest += 2 * 2 * model.decoder_layers * model.positions * model.width
    assert sum(flops) - kept + rest == pytest.approx(model.step(1, FLOAT32).flops)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.device.name)
def test_a_worker_that_transcribes_waits_for_the_gpu_and_for_its_core(machine: Machine) -> None:
    for model in MODELS:
        plan = prepare(model, machine)
        assert plan.gpu < plan.worker <= plan.seconds
        assert plan.batched < plan.gpu
    rates = [1 / prepare(model, machine).gpu for model in (*MODELS[:3], MODELS[-1])]
    assert rates == sorted(rates, reverse=True), "a larger ASR takes longer"


def test_the_base_has_the_weights_of_the_shape() -> None:
    shape = Shape(28)
    lm = make_base(shape, "meta")
    assert sum(part.numel() for part in lm.parameters()) == scale.QWEN.weights
    table = lm.get_input_embeddings().weight.numel()
    assert scale.QWEN.weights - scale.QWEN.body == table


@pytest.mark.parametrize("row", scale.compared(), ids=lambda row: row.what)
def test_the_model_is_within_a_fifth_of_what_the_cpu_did(row: scale.Row) -> None:
    page = " ".join((ROOT / row.source).read_text("utf-8").split())
    assert row.cell in page, f"{row.source} no longer has {row.cell!r}"
    assert bool(row.missed) == (abs(row.error) > 0.2), f"{row.what}: off by {row.error:+.0%}"


def test_every_job_is_compared_with_a_row_that_sets_no_share() -> None:
    tested = {row.job for row in scale.compared() if not row.sets and not row.missed}
    assert tested == {"encode", "train", "serve", "prepare"}
    assert sum(row.sets for row in scale.compared()) == 5


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.device.name)
def test_more_gpus_are_never_slower(machine: Machine) -> None:
    for fewer, more in pairwise(DEVICES):
        slow, fast = (encode(scale.SNAC, machine, count) for count in (fewer, more))
        assert fast.seconds <= slow.seconds
        for base in scale.BASES:
            if before := plan_training(base, scale.SNAC, machine, fewer):
                after = plan_training(base, scale.SNAC, machine, more)
                assert after, f"{base.name} fits {fewer} GPUs and not {more}"
                assert after.audio_per_second >= before.audio_per_second


def test_parts_run_at_the_same_time_and_the_slowest_is_the_wall() -> None:
    plan = Plan({"GPU": 1.0, "network": 3.0, "cores": 2.0})
    assert (plan.seconds, plan.bottleneck) == (3.0, "network")


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.device.name)
def test_a_gpu_holds_the_streams_that_its_scarcest_resource_allows(machine: Machine) -> None:
    held = [serve(base, scale.SNAC, machine, Load()) for base in scale.BASES]
    for streams in held:
        assert streams.held == min(streams.limits.values())
        assert sum(streams.parts.values()) <= 1 or not streams.held
    assert [streams.limits["GPU time"] for streams in held] == sorted(
        (streams.limits["GPU time"] for streams in held), reverse=True
    ), "a larger base holds more streams"


def test_longer_texts_cost_streams() -> None:
    base: Base = scale.QWEN
    short, long = (
        serve(base, scale.SNAC, MACHINES[1], Load(seconds=seconds)).limits["GPU time"]
        for seconds in (6.0, 24.0)
    )
    assert long < short


@pytest.mark.parametrize("heading", TABLES)
def test_the_page_has_the_table_that_the_module_prints(heading: str) -> None:
    page = (ROOT / "docs" / "scale.md").read_text("utf-8")
    assert f"## {heading}\n" in page
    section = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    assert TABLES[heading] in section, (
        f"docs/scale.md, {heading}: replace the table by what `python benchmarks/scale.py` prints"
    )


def test_the_guide_for_a_gpu_states_the_streams_of_the_table() -> None:
    held = {
        machine.device.name: serve(scale.QWEN, scale.SNAC, machine, Load()).held
        for machine in MACHINES
    }
    guide = " ".join((ROOT / "docs" / "serving.md").read_text("utf-8").split())
    assert f"about {held['H100']} streams on an H100 for a model of 0.6B parameters" in guide
    assert f"about {held['L40S']} on an L40S" in guide
    page = " ".join((ROOT / "docs" / "scale.md").read_text("utf-8").split())
    parts = serve(scale.QWEN, scale.SNAC, P5, Load()).parts
    launching, reading, copying = (f"{seconds:.0%}" for seconds in [*parts.values()][:3])
    assert f"the largest part of an H100's time, {launching}; reading weights" in page
    assert (
        f"values is {reading}, and copying keys and values from their pages first {copying}" in page
    )


def test_a_step_on_a_gpu_copies_pages_and_reads_every_slot_up_to_the_engines_length() -> None:
    lengths = attention_lengths(1 << 14)
    for positions in (1, 256, 257, 512, 518, 3000):
        assert attended(positions) == next(length for length in lengths if length >= positions)
    parts = step_parts(scale.QWEN, H100, 256, 512, BFLOAT16)
    assert parts["copying pages"] == pytest.approx(10e-3 * 3.0e12 / H100.bandwidth, rel=0.01)
    assert step_parts(scale.QWEN, EPYC_CORE, 256, 512, FLOAT32)["copying pages"] == 0


def test_the_page_states_the_shares_of_the_peak() -> None:
    page = " ".join((ROOT / "docs" / "scale.md").read_text("utf-8").split())
    jobs = CODEC, TRAIN, GENERATE, TRANSCRIBE
    codec, train, generate, transcribe = (f"{SHARES['CPU'][job]:.0%}" for job in jobs)
    assert f"{codec} for the codec, {train} for training, {generate} for generation" in page
    assert f"{transcribe} for transcription" in page
    codec, train, generate, transcribe = (f"{SHARES['GPU'][job]:.0%}" for job in jobs)
    assert f"{transcribe} for transcription" in page
    assert f"{codec} for the codec; {train} for training" in page
    assert f"{generate} for generation" in page
