"""A file of codes that nothing spoke, for what trains on codes."""

import json
from pathlib import Path

import numpy as np


def write_codes(path: Path) -> Path:
    """24 short utterances of one speaker, drawn at random, with a text each."""
    draw = np.random.default_rng(0)
    lines = []
    for index in range(24):
        frames = int(draw.integers(2, 6))
        codes = [draw.integers(0, 4096, frames * times).tolist() for times in (1, 2, 4)]
        lines.append(json.dumps({"text": f"text {index}", "speaker": "ann", "snac_codes": codes}))
    path.write_text("\n".join(lines) + "\n")
    return path
