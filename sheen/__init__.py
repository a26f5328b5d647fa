"""Sheen: your own voice model on Ray.

    speaker = sheen.load("runs/mine/train/checkpoint")  # or sheen.load(), the English voice
    speaker.synthesize("The kettle is already on.").save("out.wav")

Owns the public names, `__all__`; every other module may change between versions. Imports the rest
on first use: `import sheen` does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sheen.engine.types import Reference
    from sheen.lm.precision import Precision
    from sheen.speaker import Audio, Speaker

__version__ = "0.1.0"
__all__ = ["Audio", "Reference", "Speaker", "__version__", "load"]


def load(
    model: str | None = None,
    *,
    device: str | None = None,
    dtype: "Precision" = "auto",
    max_seconds: float = 30.0,
    form: str | None = None,
    codec: str | None = None,
    info: str | None = None,
) -> "Speaker":
    """Open a checkpoint for synthesis, without Ray.

    `model`: a folder, a URI such as s3://bucket/checkpoint, or a hub id (default: the English voice
    of the checkout, or of the package sheen-voice-english). `device`: a torch device (default:
    `cuda` if available, else `cpu`). `dtype`: number format of the speech model, `float32`,
    `bfloat16` or `auto`, the default (bfloat16 on a GPU, float32 on a CPU). `max_seconds`:
    longest audio of one chunk of text; longer texts are split into several chunks.

    For a checkpoint without `sheen.json`, which others trained: `form`, its prompt form, if the
    tokenizer does not show it; `codec`, its SNAC codec by folder or hub id; or instead `info`, a
    file of `sheen inspect`. For any other, `codec` may be one that differs from the checkpoint's in
    the decoder alone. Raises ValueError naming the argument.
    """
    from sheen.speaker import Speaker

    return Speaker(
        model,
        device=device,
        dtype=dtype,
        max_seconds=max_seconds,
        form=form,
        codec=codec,
        info=info,
    )


def __getattr__(name: str) -> Any:
    if name in ("Audio", "Reference", "Speaker"):
        from sheen import speaker

        return getattr(speaker, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
