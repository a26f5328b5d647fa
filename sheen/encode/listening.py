"""What the codec makes of a few of the encoded recordings, for the report's page.

Owns which recordings, and reading them once more. Measures through `sheen.judge`.
"""

import logging
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from sheen.core.audio import AudioError, decode_audio
from sheen.core.codec import Codec
from sheen.core.codec_info import CodecInfo
from sheen.core.recordings import RecordingReader
from sheen.encode.accounts import sample_rows
from sheen.judge.codec_quality import CodecReport, Recording, measure_codec
from sheen.judge.codec_report import compare
from sheen.report.clips import ClipRow

logger = logging.getLogger(__name__)

LONGEST_S = 8.0
"""Of a recording, from its beginning: the page carries its sound."""


def codec_sample(
    rows: str, manifest: pa.Table, codec: Codec, info: CodecInfo, count: int
) -> tuple[CodecReport | None, Sequence[ClipRow]]:
    """The codec's report on up to `count` recordings, spread over the input, and their clips."""
    chosen = {row["key"]: row for row in sample_rows(rows, count)} if count else {}
    asked = manifest.filter(pc.is_in(manifest["key"], pa.array(list(chosen), pa.int64())))
    recordings = []
    with RecordingReader() as reader:
        for row in asked.to_pylist():
            if row["audio"] is None:
                continue  # it came as codes
            try:
                samples = decode_audio(reader.read(row), codec.sample_rate)
            except (OSError, AudioError) as error:
                # It was there when it was encoded: no reason to lose the job's report.
                logger.warning("the report leaves out %s: %s", row["source"], error)
                continue
            start = round((row["start"] or 0.0) * codec.sample_rate)
            length = chosen[row["key"]]["n_samples"]
            length = min(length, round(LONGEST_S * codec.sample_rate))
            clip = samples[start : start + length]
            recordings.append(Recording(row["id"], clip, row["text"], row["speaker"]))
    if not recordings:
        return None, []
    report, decoded = measure_codec(codec, info.source, recordings)
    clips = [
        compare(report, index, recording.waveform, decoded[index])
        for index, recording in enumerate(recordings)
    ]
    return report, clips
