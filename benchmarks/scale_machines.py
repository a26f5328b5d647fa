"""The devices and machines of the scale model, and every measured or published figure it rests on.

Each constant says where it is from: a row of docs/benchmarks.md or a decision (measured), a data
sheet (published), or "estimate": then nothing has measured it, and `gpu_acceptance.py` will.
Figures of data sheets, of AWS and of the EPYC's memory are quoted from memory and were not looked
up again. Owns no formula.
"""

from dataclasses import dataclass, replace

from scale_shapes import FLOAT32, Work


@dataclass(frozen=True)
class Device:
    """A GPU, or CPU cores that compute together. Peaks are in FLOP/s, the memory's in bytes/s."""

    name: str
    kind: str
    float32: float
    bfloat16: float
    bandwidth: float
    memory: float
    call_s: float
    """Of an operator in a generation step, whatever it computes."""
    host_call_s: float
    """Of launching an operator from Python: prompts, and training steps."""

    def times(self, count: float) -> "Device":
        peaks = self.float32 * count, self.bfloat16 * count
        return replace(self, float32=peaks[0], bfloat16=peaks[1], bandwidth=self.bandwidth * count)

    def seconds(self, work: Work, job: str, itemsize: int = FLOAT32) -> float:
        """Arithmetic or memory, whichever takes longer, at the job's share of the peak."""
        peak = self.float32 if itemsize == FLOAT32 else self.bfloat16
        slower = max(work.flops / peak, work.bytes / self.bandwidth)
        return slower / SHARES[self.kind][job]


@dataclass(frozen=True)
class Machine:
    name: str
    device: Device
    devices: int
    cores: int
    """Of the CPU: half as many as vCPUs."""
    network: float
    """Bytes/s of one machine's TCP."""
    fabric: float
    """Bytes/s per GPU between machines, for gradients."""
    link: float
    """Bytes/s per GPU within a machine."""


CODEC, TRAIN, GENERATE, TRANSCRIBE = "codec", "train", "generate", "transcribe"
SHARES = {
    "CPU": {
        CODEC: 0.62,  # docs/benchmarks.md, Encoding: bare, 21.36 audio s/s
        TRAIN: 0.60,  # Training, 28 layers: 34.6 targets/s
        GENERATE: 0.34,  # Cost of a token: 53.4 ms at 1 stream
        # Preparing: 0.40 CPU s for a window of tiny.en in int8, of bfloat16's peak.
        TRANSCRIBE: 0.61,
    },
    "GPU": {
        # Estimate: elementwise kernels come near a copy, 0.9 of the data sheet, and torch's float32
        # depthwise convolutions stay far below it.
        CODEC: 0.55,
        # Published: 53,900 tokens/s of Qwen3-0.6B with the whole vocabulary on an H100
        # (docs.surogate.ai/reference/benchmarks), by the count of `training` 3.6 GFLOP each: 19.5%.
        TRAIN: 0.20,
        # Published by a vendor (silares.com): 216 streams of Orpheus-3B on an H100; by our count of
        # weights, keys and values, if in bfloat16, half of the data sheet's bandwidth.
        GENERATE: 0.50,
        # Published in faster-whisper's README: 63 s of large-v2 for 13 minutes on a 3070 Ti.
        TRANSCRIBE: 0.20,
    },
}
"""Of the peak; the one constant per job that is fitted, once per kind of device."""

EPYC_CORE = Device(
    "EPYC core",
    "CPU",
    # 2.6 GHz (the base clock that lscpu shows) and two 256-bit FMA units (AMD's optimization guide
    # for Zen 4); AVX512_BF16 doubles it.
    float32=2.6e9 * 32,
    bfloat16=2.6e9 * 64,
    # Half of what a core complex die reads, 32 bytes per fabric clock of 1.8 GHz: 58 GB/s (assumed
    # of AMD's 4th generation EPYC; reports of it say "over 50").
    bandwidth=32 * 1.8e9 / 2,
    memory=25e9 / 2,  # docs/benchmarks.md, Training: 25 GB
    # Decision 0027: three quarters of 7.29 ms were the price of 722 calls, when a step of 16
    # streams took 15.0 ms; on the day of the benchmarks it took 7.95 (Profile of a decoding step).
    call_s=0.75 * 7.29e-3 / 722 * 7.95 / 15.0,
    host_call_s=0.0,  # a step's prompts share its calls; beside a training step they are nothing
)
GPU_CALL_S = 2.2e-6
"""Estimate: of a small kernel in a CUDA graph that waits for the one before it."""
HOST_CALL_S = 12e-3 / 1995
"""Measured on 2 cores without a GPU: the Python of a prompt's eager pass at Qwen3-0.6B's shape."""
# NVIDIA's data sheets: dense peaks.
H100 = Device("H100", "GPU", 67e12, 989e12, 3.35e12, 80e9, GPU_CALL_S, HOST_CALL_S)
H200 = replace(H100, name="H200", bandwidth=4.8e12, memory=141e9)
RTX_3070_TI = Device("3070 Ti", "GPU", 21.7e12, 87e12, 0.608e12, 8e9, GPU_CALL_S, HOST_CALL_S)
L40S = Device("L40S", "GPU", 91.6e12, 362e12, 0.864e12, 48e9, GPU_CALL_S, HOST_CALL_S)

BENCH = Machine("the CPU of docs/benchmarks.md", EPYC_CORE.times(2), 1, 2, 1e9, 1e9, 1e9)
# AWS lists vCPUs, GPUs and networks: of a p5 32 cards of 100 Gbit/s, all for gradients (EFA), one
# for TCP. NVLink by NVIDIA's data sheet, one direction.
P5 = Machine("p5.48xlarge", H100, 8, 96, 100e9 / 8, 3200e9 / 8 / 8, 450e9)
P5E = replace(P5, name="p5e.48xlarge", device=H200)
G6E = Machine("g6e.2xlarge", L40S, 1, 4, 20e9 / 8, 20e9 / 8, 20e9 / 8)
MACHINES = (G6E, P5, P5E)

DECODED = 590 / (65 * 0.027)
"""Seconds of 44.1 kHz FLAC that a core decodes and resamples per second: docs/benchmarks.md,
Encoding: 590 s of audio, 65 s in all stages, 2% decoding and 0.7% resampling."""
WORKER_GB, DECODER_GB = 1.6 / 2, 1.4 / 2
"""Memory of an encoding worker, and of a process that decodes and writes: docs/benchmarks.md,
Encoding, Memory."""
SOURCE_BYTES = 44_100 * 2
"""Of a second of a recording, 16-bit mono; FLAC has about half, so this is an upper bound."""
BLOCK_ROWS, CLIP_S, TASKS = 64, 6.0, 3
"""Rows of a block (decision 0019), their length (assumed), and tasks per block: decode, encode,
write."""
TASKS_PER_SECOND = 582
"""Published: Ray's own release benchmark `many_tasks`, 10,000 tasks (release_logs/2.20.0)."""
HOST_CORE_S = 2 / 10.04 - 2 / 21.18
"""Core-seconds of HTTP, Serve and the load generator per second of audio: docs/benchmarks.md,
Endpoint with 16 clients less Serving with 32 streams, on the same 2 cores. An upper bound: short
requests, whose clients were on those cores too."""
LAYER_CALLS, PASS_CALLS, STREAM_CALLS = 59, 343, 4.2
"""Operators of a generation step: per layer (counted by a profiler), per step, and on a CPU per
stream and layer; 6 layers make 722 calls for 1 stream and 1,102 for 16 (decision 0027)."""
TRAINING_CALLS = 63 + 122
"""Kernels per layer, forward and backward (counted by a profiler, without compiling)."""
SAVED_BYTES = 80.2e3 / (4 * 1024 + 2 * 4096 + 3 * 3072)
"""Per token, layer and value of its width (see `scale_jobs.saved_values`), kept for the backward
pass: measured on a CPU with saved-tensor hooks at Qwen3-0.6B's shape in bfloat16, not compiled."""
ASR_CALL_S = 4e-6
"""Estimate: of launching an operator of CTranslate2, which uses no CUDA graph."""
ENCODER_CALLS, DECODER_CALLS, TOKEN_CALLS = 18, 28, 30
"""Estimate, from a Whisper layer's operators: of CTranslate2 per layer of the encoder and of the
decoder, and per token."""
CUT_S, READ_S = 0.0031, 0.0045
"""CPU seconds per second of audio of finding the segments, and of reading them and measuring their
sound: decision 0029, Measured."""
EMBED_S, FEATURES_S = 0.034, 0.002
"""CPU seconds per segment: its speaker embeddings (of 6.5 s at most, whatever the length), and, in
the worker that transcribes, its spectrogram: docs/benchmarks.md, Preparing."""
SEGMENT_ROWS = 32
"""Segments of a block (sheen/prepare/stages/pipelines.py)."""
