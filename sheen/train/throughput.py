"""How much arithmetic a step is, and what share of a device's peak that makes per second."""

import torch

from sheen.core.model import SpeechLM

# Dense bfloat16 peaks in FLOP/s, from NVIDIA's data sheets. A name earlier in the table wins.
PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The device's bfloat16 peak in FLOP/s, where it is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def training_flops(model: SpeechLM) -> tuple[float, float]:
    """FLOP of forward and backward pass per token of a row, and per target token.

    Six per weight and token: two forward, four backward (Kaplan et al. 2020). Attention scores are
    left out: with utterances of a thousand tokens they are a few percent.
    """
    tables = {id(table) for table in model.tables}
    body = sum(part.numel() for part in model.parameters() if id(part) not in tables)
    rows, width = model.head.shape
    if model.objective == "legal rows":
        rows = model.layout.codebook_size
    return 6.0 * body, 6.0 * width * rows
