"""What the codec makes of a few of the encoded recordings, for the report's page.

Owns which recordings; they are read and prepared once more as for encoding. Measures through
`sheen.judge`.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheen.core.audio import from_pcm16
from sheen.core.codec import Codec
from sheen.encode.accounts import sample_rows
from sheen.encode.decoding import Preparation, prepare
from sheen.judge.codec_quality import CodecReport, Recording, measure_codec
from sheen.judge.codec_report import compare
from sheen.report.clips import ClipRow

logger = logging.getLogger(__name__)

LONGEST_S = 8.0
"""Of a recording, from its beginning: the page carries its sound."""


def codec_sample(
    rows: str, manifest: pa.Table, codec: Codec, preparation: Preparation, count: int
) -> tuple[CodecReport | None, Sequence[ClipRow]]:
    """The codec's report on up to `count` recordings, spread over the input, and their clips."""
    keys = [row["key"] for row in sample_rows(rows, count)] if count else []
    asked = manifest.filter(pc.is_in(manifest["key"], pa.array(keys, pa.int64())))
    longest = round(LONGEST_S * codec.sample_rate)
    recordings = []
    for row in prepare(asked, preparation).to_pylist():
        if row["pcm"] is not None:
            clip = from_pcm16(np.frombuffer(row["pcm"], "<i2"))[:longest]
            recordings.append(Recording(row["id"], clip, row["text"], row["speaker"]))
        elif row["reason"] is not None:
            # It could be read when it was encoded: no reason to lose the job's report.
            logger.warning("the report leaves out %s: %s", row["source"], row["detail"])
    if not recordings:
        return None, []
    report, decoded = measure_codec(codec, codec.source, recordings)
    clips = [
        compare(report, index, recording.waveform, decoded[index])
        for index, recording in enumerate(recordings)
    ]
    return report, clips
