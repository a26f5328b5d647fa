"""A loss in the features of a frozen Whisper encoder, and loading that encoder.

Owns Whisper's log-mel spectrogram at a codec's own sample rate, the distance of two batches of
audio in the encoder's features, and opening the encoder from transformers' or CTranslate2's files.
A codec of few bits that learns from spectral distances alone preserves timbre before words; this
distance is about the words (JHCodec, arXiv 2603.05887). Knows nothing of codecs. Refuses quantized
weights and sample rates at which Whisper's windows are not a whole number of samples.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from sheen.codec.ctranslate2_file import MODEL_FILE, read_variables

if TYPE_CHECKING:  # transformers takes seconds to import, and few codecs are trained with an ASR
    from transformers.models.whisper.modeling_whisper import WhisperEncoder


def open_asr_encoder(source: str) -> "WhisperEncoder":
    """The frozen encoder of a Whisper in float32, in evaluation mode.

    `source` is a hub id, a folder as transformers writes it, or a CTranslate2 folder, which holds
    `model.bin`. Raises ValueError naming it when it is none of these.
    """
    folder = Path(source).expanduser()
    try:
        if (folder / MODEL_FILE).is_file():
            encoder = _from_ctranslate2(folder / MODEL_FILE)
        elif folder.is_dir() or _is_hub_id(source):
            encoder = _from_transformers(str(folder) if folder.is_dir() else source)
        else:
            raise ValueError(
                f"no such folder; give a folder with {MODEL_FILE} (CTranslate2) or with "
                "transformers' files, or a hub id such as openai/whisper-tiny.en"
            )
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(f"speech encoder {source!r}: {error}") from error
    frozen: WhisperEncoder = encoder.float().requires_grad_(False).eval()
    return frozen


def weights_sha256(encoder: "WhisperEncoder") -> str:
    """A hash of the encoder's weights as float32, the same for every file format."""
    digest = hashlib.sha256()
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_hub_id(source: str) -> bool:
    return not source.startswith(("/", ".", "~")) and source.count("/") == 1


def _from_transformers(source: str) -> "WhisperEncoder":
    from transformers import WhisperConfig, WhisperModel

    config = WhisperConfig.from_pretrained(source)
    if config.model_type != "whisper":
        raise ValueError(f"a model of type {config.model_type!r}, expected 'whisper'")
    model = WhisperModel.from_pretrained(source, dtype=torch.float32)
    encoder: WhisperEncoder = model.get_encoder()
    return encoder


def _from_ctranslate2(path: Path) -> "WhisperEncoder":
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    prefix = "encoder/"
    found = {
        name.removeprefix(prefix): variable
        for name, variable in read_variables(path, "WhisperSpec", prefix).items()
    }
    quantized = [name for name in found if name.endswith("weight_scale")]
    if quantized:
        raise ValueError(
            f"{path}: its weights are quantized integers, expected float32, float16 or bfloat16"
        )
    layers = sum(name.endswith("self_attention/linear_0/weight") for name in found)
    width, mels, _ = found["conv1/weight"].shape
    encoder = WhisperEncoder(
        WhisperConfig(
            num_mel_bins=mels,
            d_model=width,
            encoder_layers=layers,
            encoder_attention_heads=int(found["num_heads"]),
            encoder_ffn_dim=found["layer_0/ffn/linear_0/weight"].shape[0],
            max_source_positions=found["position_encodings/encodings"].shape[0],
        )
    )
    encoder.load_state_dict(_transformers_names(found, layers))
    return encoder


def _transformers_names(found: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """CTranslate2's variables under the names, and cut as the weights, of transformers' encoder."""
    state = {"embed_positions.weight": found["position_encodings/encodings"]}

    def copy(ours: str, theirs: str, weight: str = "weight", bias: str = "bias") -> None:
        state[f"{ours}.weight"] = found[f"{theirs}/{weight}"]
        state[f"{ours}.bias"] = found[f"{theirs}/{bias}"]

    copy("conv1", "conv1")
    copy("conv2", "conv2")
    copy("layer_norm", "layer_norm", "gamma", "beta")
    for index in range(layers):
        ours, theirs = f"layers.{index}", f"layer_{index}"
        for norm, block in (
            ("self_attn_layer_norm", "self_attention"),
            ("final_layer_norm", "ffn"),
        ):
            copy(f"{ours}.{norm}", f"{theirs}/{block}/layer_norm", "gamma", "beta")
        copy(f"{ours}.self_attn.out_proj", f"{theirs}/self_attention/linear_1")
        copy(f"{ours}.fc1", f"{theirs}/ffn/linear_0")
        copy(f"{ours}.fc2", f"{theirs}/ffn/linear_1")
        # Queries, keys and values are one matrix there. Keys have no bias: theirs is zeros.
        for part in ("weight", "bias"):
            joined = found[f"{theirs}/self_attention/linear_0/{part}"].chunk(3)
            for projection, values in zip("qkv", joined, strict=True):
                if (projection, part) != ("k", "bias"):
                    state[f"{ours}.self_attn.{projection}_proj.{part}"] = values
    return state


WHISPER_RATE = 16000
_WINDOW_PER_S, _FRAMES_PER_S = 40, 100  # windows of 25 ms, of which each starts 10 ms later
_BINS = WHISPER_RATE // (2 * _WINDOW_PER_S) + 1
FLOOR = 1e-6
"""Power that is added to every mel band, relative to a segment's loudest."""
QUIETEST = 1e-1
"""Floor of the loudest band's power; speech at a usual level has 1 to 5, silence 0."""


class AsrFeatureLoss(nn.Module):
    """L1 of a Whisper encoder's features: of its stem, its middle layer and its last.

    Of each the mean distance is divided by the original's mean magnitude; the loss is the mean of
    the three. The encoder stays in evaluation mode and learns nothing.
    """

    taper: Tensor
    bank: Tensor

    def __init__(self, encoder: "WhisperEncoder", sample_rate: int) -> None:
        """Raises ValueError for a rate at which Whisper's windows are not whole samples."""
        super().__init__()
        if sample_rate < WHISPER_RATE or sample_rate % (2 * _FRAMES_PER_S):
            raise ValueError(
                f"audio at {sample_rate} Hz; Whisper's features need a rate from {WHISPER_RATE} Hz "
                f"that is a multiple of {2 * _FRAMES_PER_S}, such as 24000"
            )
        self.encoder = encoder.requires_grad_(False)
        self.middle = len(encoder.layers) // 2
        self.window = sample_rate // _WINDOW_PER_S
        self.hop = sample_rate // _FRAMES_PER_S
        self.longest = encoder.embed_positions.num_embeddings * 2 * self.hop
        """Samples of audio that the encoder has positions for: 30 s."""
        # The power of a window that is longer by so much, in samples, for the same sound.
        self.gain = (sample_rate / WHISPER_RATE) ** 2
        self.register_buffer("taper", torch.hann_window(self.window), persistent=False)
        bank = melscale_fbanks(
            _BINS,
            0.0,
            WHISPER_RATE / 2,
            encoder.num_mel_bins,
            WHISPER_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.register_buffer("bank", bank, persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> "AsrFeatureLoss":
        """Without effect: the encoder stays as it is while the codec learns."""
        return super().train(False)

    def forward(self, decoded: Tensor, audio: Tensor) -> Tensor:
        """Loss of `decoded` and `audio`, `[B, n]` float32; the gradient flows into `decoded`."""
        with torch.no_grad():
            power = self.mel_power(audio)
            floor = FLOOR * power.amax((1, 2), keepdim=True).clamp(min=QUIETEST)
            wanted = self.features(log_mel(power, floor))
        found = self.features(log_mel(self.mel_power(decoded), floor))
        terms = [
            (ours - theirs).abs().mean() / theirs.abs().mean()
            for ours, theirs in zip(found, wanted, strict=True)
        ]
        return torch.stack(terms).mean()

    def mel_power(self, audio: Tensor) -> Tensor:
        """`[B, n]` -> Whisper's mel bands `[B, bands, n // hop]`, as of the same sound at 16 kHz.

        At any rate a window of 25 ms has a bin every 40 Hz, so Whisper's filters fit as they are.
        """
        spectrum = torch.stft(audio, self.window, self.hop, window=self.taper, return_complex=True)
        below = spectrum[:, :_BINS, :-1]
        power = (below.real.square() + below.imag.square()) / self.gain
        return self.bank.T @ power

    def features(self, mel: Tensor) -> list[Tensor]:
        """`[B, bands, frames]` -> the outputs of stem, middle and last layer `[B, frames / 2, D]`.

        transformers' own forward takes 30 s and nothing else; here the positions end with the
        audio. The stem's output is without them; the last layer's has passed the final norm.
        """
        encoder = self.encoder
        x = F.gelu(encoder.conv1(mel))
        x = F.gelu(encoder.conv2(x)).transpose(1, 2)
        outputs = [x]
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for number, layer in enumerate(encoder.layers, start=1):
            x = layer(x, None)
            if number == self.middle:
                outputs.append(x)
        return [*outputs, encoder.layer_norm(x)]


def log_mel(power: Tensor, floor: Tensor) -> Tensor:
    """Whisper's scale of logarithms; `floor` is added.

    Whisper clamps eight decades below the loudest band. As a loss that would be nearly all
    about silence: what a codec decodes there is faint, and the slope of a logarithm is steepest at
    nothing.
    """
    return ((power + floor).log10() + 4.0) / 4.0
