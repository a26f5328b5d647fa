"""Features of a frozen speech encoder as a loss: read right, computed right, safe to learn from."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from snac import SNAC
from torch import Tensor
from torchaudio.functional import resample
from transformers import WhisperFeatureExtractor, WhisperModel

from helpers.example import VOICES, clips_of, read_clip
from helpers.tiny_whisper import convert, save_encoder
from sheen.codec.asr_features import AsrFeatureLoss, log_mel, open_asr_encoder, weights_sha256
from sheen.codec.training import TrainableCodec

RATE = 24_000
WHISPER = "TEST_SHEEN_WHISPER"
"""Environment variable: a CTranslate2 folder of a published Whisper, such as tiny.en."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("whisper") / "transformers")


@pytest.fixture(scope="module")
def converted(saved: Path) -> Path:
    return convert(saved, saved.parent / "ctranslate2")


@pytest.fixture
def loss(saved: Path) -> AsrFeatureLoss:
    return AsrFeatureLoss(open_asr_encoder(str(saved)), RATE)


def speech(rows: int = 2, seconds: float = 0.5, sample_rate: int = RATE) -> Tensor:
    """The middles of recordings of the example, `[rows, n]`."""
    samples = int(seconds * sample_rate)
    clips = [read_clip(clip, sample_rate) for clip in clips_of(VOICES[0])[:rows]]
    cut = [clip[(len(clip) - samples) // 2 :][:samples] for clip in clips]
    return torch.from_numpy(np.stack(cut))


def slope(distance: Callable[[Tensor, Tensor], Tensor], decoded: Tensor, audio: Tensor) -> Tensor:
    """The gradient of a distance at the decoded samples."""
    leaf = decoded.clone().requires_grad_()
    torch.autograd.backward(distance(leaf, audio))
    assert leaf.grad is not None
    return leaf.grad


# The encoder


def encoded_by_ctranslate2(folder: Path, mel: Tensor) -> Tensor:
    model = ctranslate2.models.Whisper(str(folder), compute_type="float32")
    output = model.encode(ctranslate2.StorageView.from_array(mel.contiguous().numpy()))
    return torch.from_numpy(np.array(output))


def test_the_asr_encoder_computes_what_transformers_and_ctranslate2_do(
    saved: Path, converted: Path
) -> None:
    mel = torch.randn(2, 80, 200, generator=torch.Generator().manual_seed(1))
    published = WhisperModel.from_pretrained(saved).get_encoder()
    with torch.no_grad():
        wanted = published(mel, output_hidden_states=True)
    for folder in (saved, converted):
        stem, middle, last = AsrFeatureLoss(open_asr_encoder(str(folder)), RATE).features(mel)
        positions = published.embed_positions.weight
        torch.testing.assert_close(stem + positions, wanted.hidden_states[0])
        torch.testing.assert_close(middle, wanted.hidden_states[1])  # of three layers
        torch.testing.assert_close(last, wanted.last_hidden_state)
        theirs = encoded_by_ctranslate2(converted, mel)
        torch.testing.assert_close(last, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    WHISPER not in os.environ, reason=f"needs {WHISPER}: a Whisper as a CTranslate2 folder"
)
def test_a_published_whisper_encodes_as_ctranslate2() -> None:
    folder = Path(os.environ[WHISPER])
    clip = read_clip(clips_of(VOICES[0])[0], 16_000)
    encoder = open_asr_encoder(str(folder))
    extractor = WhisperFeatureExtractor(feature_size=encoder.num_mel_bins)
    mel = extractor(clip, sampling_rate=16_000, return_tensors="pt")["input_features"]
    last = AsrFeatureLoss(encoder, RATE).features(mel)[-1]
    theirs = encoded_by_ctranslate2(folder, mel)
    torch.testing.assert_close(last, theirs, rtol=1e-3, atol=1e-3)


def test_weights_have_one_identity_in_either_format(saved: Path, converted: Path) -> None:
    digests = [weights_sha256(open_asr_encoder(str(folder))) for folder in (saved, converted)]
    assert digests[0] == digests[1]
    other = open_asr_encoder(str(saved))
    other.layers[2].fc1.bias.data[0] += 1e-3
    assert weights_sha256(other) != digests[0]


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_in_half_floats_are_read(saved: Path, tmp_path: Path, stored: str) -> None:
    found = open_asr_encoder(str(convert(saved, tmp_path / stored, stored))).state_dict()
    for name, weight in open_asr_encoder(str(saved)).state_dict().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], weight, rtol=2**-8, atol=1e-6)


def test_weights_in_integers_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.bin: .*quantized .*expected float32, float16"):
        open_asr_encoder(str(convert(saved, tmp_path / "int8", "int8")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"no such folder; give a folder with model\.bin"),
        ("empty", "empty"),
        ("nobody/nothing", "nobody/nothing"),
        ("tiny.en", r"no such folder; give .* or a hub id such as openai/whisper-tiny\.en"),
        ("other", "a model of type 'qwen3', expected 'whisper'"),
    ],
)
def test_what_is_no_whisper_is_named(
    base: Path, tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").symlink_to(base)
    source = name if "/" in name or name == "tiny.en" else str(tmp_path / name)
    with pytest.raises(ValueError, match=message) as raised:
        open_asr_encoder(source)
    assert str(raised.value).startswith(f"speech encoder {source!r}: ")


def test_a_torn_or_foreign_file_is_named(converted: Path, tmp_path: Path) -> None:
    whole = (converted / "model.bin").read_bytes()
    cuts = [whole[:length] for length in (0, 3, 10, 30, len(whole) // 2, len(whole) - 1)]
    bad_type = bytearray(whole)
    at = whole.index(b"decoder/activation\0") + len(b"decoder/activation\0")
    bad_type[at + 1] = 77
    changed = {
        "not a whole CTranslate2 model": [*cuts, bytes(bad_type)],
        "format version 5, expected 6": [struct.pack("<I", 5) + whole[4:]],
        "of kind 'WhisqerSpec', expected 'WhisperSpec'": [whole.replace(b"perSpec", b"qerSpec", 1)],
    }
    for message, contents in changed.items():
        for content in contents:
            (tmp_path / "model.bin").write_bytes(content)
            with pytest.raises(ValueError, match=message) as raised:
                open_asr_encoder(str(tmp_path))
            assert str(tmp_path / "model.bin") in str(raised.value)


# The spectrum


def test_the_mel_bands_of_the_loss_are_whispers_own(loss: AsrFeatureLoss) -> None:
    wanted = WhisperFeatureExtractor().mel_filters
    np.testing.assert_allclose(loss.bank.numpy(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sample_rate", [16_000, 24_000, 32_000, 48_000])
def test_mel_features_at_the_codecs_rate_are_whispers_at_16_khz(
    saved: Path, sample_rate: int
) -> None:
    """At the codec's rate as Whisper hears the sound at 16 kHz, but for the resampler's edge."""
    loss = AsrFeatureLoss(open_asr_encoder(str(saved)), sample_rate)
    # White, so that no band is so faint that Whisper's own floor decides what it says.
    noise = torch.randn(48_000, generator=torch.Generator().manual_seed(2))
    original = 0.1 * resample(noise, 48_000, 16_000)
    at_rate = original if sample_rate == 16_000 else resample(original, 16_000, sample_rate)
    whispers = WhisperFeatureExtractor()(
        original.numpy(), sampling_rate=16_000, padding=False, return_tensors="pt"
    )["input_features"]
    ours = log_mel(loss.mel_power(at_rate[None]), torch.tensor(1e-10))
    assert ours.shape == whispers.shape == (1, 80, 100)
    difference = (ours - whispers).abs()
    assert difference[:, :75].mean() < 1e-3
    if sample_rate == 16_000:
        torch.testing.assert_close(ours, whispers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sample_rate", [8_000, 44_100])
def test_a_rate_without_whole_windows_is_refused(saved: Path, sample_rate: int) -> None:
    with pytest.raises(ValueError, match=f"audio at {sample_rate} Hz; .*multiple of 200"):
        AsrFeatureLoss(open_asr_encoder(str(saved)), sample_rate)


# The loss


def test_equal_audio_has_no_distance_and_other_audio_has(loss: AsrFeatureLoss) -> None:
    audio = speech()
    assert loss(audio, audio).item() == 0.0
    noise = torch.randn(audio.shape, generator=torch.Generator().manual_seed(5))
    near, far = (loss(audio + level * noise, audio) for level in (1e-3, 1e-1))
    assert 0.0 < near.item() < far.item()


def test_the_asr_loss_is_the_mean_of_three_relative_distances(loss: AsrFeatureLoss) -> None:
    audio, decoded = speech(), 0.9 * speech().flip(0)
    loud = loss.mel_power(audio).amax((1, 2), keepdim=True)
    assert loud.min() > 0.1, "else the least floor decides"
    features = [
        loss.features(log_mel(loss.mel_power(waveforms), 1e-6 * loud))
        for waveforms in (decoded, audio)
    ]
    terms = [(a - b).abs().mean() / b.abs().mean() for a, b in zip(*features, strict=True)]
    assert len(terms) == 3
    torch.testing.assert_close(loss(decoded, audio), sum(terms) / 3)


def test_silence_does_not_own_the_gradient(loss: AsrFeatureLoss) -> None:
    """Faint noise where the recording is silent pulls no harder than an error in the speech."""
    noise = torch.randn(2, 24_000, generator=torch.Generator().manual_seed(3))
    audio = torch.cat([speech(), torch.zeros(2, 12_000)], dim=1)
    decoded = audio + torch.where(audio == 0, 1e-5, 3e-2) * noise
    found = slope(loss, decoded, audio)
    in_speech, in_silence = found[:, :11_000].norm(), found[:, 13_000:].norm()
    assert 0.0 < in_silence < in_speech

    def clamped(decoded: Tensor, audio: Tensor) -> Tensor:
        features = []
        for waveforms in (decoded, audio):
            power = loss.mel_power(waveforms).clamp(min=1e-10)
            features.append(loss.features((power.log10() + 4.0) / 4.0))
        return torch.stack(
            [(a - b).abs().mean() / b.abs().mean() for a, b in zip(*features, strict=True)]
        ).mean()

    trap = slope(clamped, decoded, audio)
    assert trap[:, 13_000:].norm() > 10 * trap[:, :11_000].norm(), "as Whisper's own floor has it"


@pytest.mark.parametrize("level", [0.0, 1e-8, 1e-5, 1e-3])
def test_a_silent_segment_has_a_finite_and_small_gradient(
    loss: AsrFeatureLoss, level: float
) -> None:
    """Digital silence, and what a codec makes of it, beside what speech with an error pulls."""
    audio = speech()
    noise = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(4))
    usual = slope(loss, audio + 0.03 * noise, audio).norm()
    found = slope(loss, level * noise, torch.zeros_like(audio))
    assert torch.isfinite(found).all()
    assert found.norm() < 100 * usual


# In a codec that learns


def test_the_codec_learns_from_the_asr_loss_and_the_encoder_does_not(loss: AsrFeatureLoss) -> None:
    torch.manual_seed(0)
    model = SNAC(
        sampling_rate=RATE, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=32,
        decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=64, vq_strides=[4, 2, 1],
    )  # fmt: skip
    names = list(model.state_dict())
    before = weights_sha256(loss.encoder)
    assert not any(module.training for module in loss.modules())
    trainable = TrainableCodec(model, asr_features=loss).train()
    assert not any(module.training for module in loss.modules())
    assert list(model.state_dict()) == names, "the codec's files stay as they are"
    losses = trainable(speech(seconds=6144 / RATE))
    assert losses.asr_features is not None
    torch.autograd.backward(losses.asr_features)
    assert all(weight.grad is None for weight in loss.parameters())
    assert not any(weight.requires_grad for weight in loss.parameters())
    reached = {
        name.split(".")[0]
        for name, weight in model.named_parameters()
        if weight.grad is not None and weight.grad.abs().max() > 0
    }
    assert {"encoder", "quantizer", "decoder"} <= reached
    learning = [weight for weight in trainable.parameters() if weight.requires_grad]
    assert len(learning) == len(list(model.parameters()))
    torch.optim.SGD(trainable.parameters(), lr=0.1).step()
    assert weights_sha256(loss.encoder) == before


def test_without_an_asr_encoder_the_loss_has_no_such_term() -> None:
    torch.manual_seed(0)
    model = SNAC(
        sampling_rate=RATE, encoder_dim=8, encoder_rates=[2, 4, 8, 8], decoder_dim=32,
        decoder_rates=[8, 8, 4, 2], attn_window_size=None, codebook_size=64, vq_strides=[4, 2, 1],
    )  # fmt: skip
    assert TrainableCodec(model)(speech(seconds=6144 / RATE)).asr_features is None
