"""The encoder of a Whisper speech recogniser, from transformers or CTranslate2, in plain torch.

Owns where such a model is found, how CTranslate2's variables are named in transformers' encoder,
and the identity of its weights. What is done with its features is asr_features's business.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from sheen.core.ctranslate2_file import MODEL_FILE, read_variables


def open_asr_encoder(source: str) -> WhisperEncoder:
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
    return encoder.float().requires_grad_(False).eval()


def weights_sha256(encoder: WhisperEncoder) -> str:
    """Of the encoder's weights as float32, whatever file they came from."""
    digest = hashlib.sha256()
    for name, weight in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _is_hub_id(source: str) -> bool:
    return not source.startswith(("/", ".", "~")) and source.count("/") == 1


def _from_transformers(source: str) -> WhisperEncoder:
    config = WhisperConfig.from_pretrained(source)
    if config.model_type != "whisper":
        raise ValueError(f"a model of type {config.model_type!r}, expected 'whisper'")
    return WhisperModel.from_pretrained(source, dtype=torch.float32).get_encoder()


def _from_ctranslate2(path: Path) -> WhisperEncoder:
    prefix = "encoder/"
    found = {
        name.removeprefix(prefix): variable
        for name, variable in read_variables(path, "WhisperSpec", prefix).items()
    }
    quantized = [name for name in found if name.endswith("weight_scale")]
    if quantized:
        raise ValueError(
            f"{path}: its weights are quantised integers, expected float32, float16 or bfloat16"
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
