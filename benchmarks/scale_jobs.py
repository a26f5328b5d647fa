"""Encode, train and serve by arithmetic: the time of each part, and which one is the bottleneck.

Owns the formulas: the shapes' FLOPs and bytes (`scale_shapes.py`) over the devices' peaks
(`scale_machines.py`), at one share of the peak per job. Of parts that run at the same time the
slowest is the bottleneck; times of parts that wait for each other on one device are added. The same
formulas hold for a CPU. Measures nothing, and imports neither Ray nor torch.
"""

from dataclasses import dataclass

from scale_machines import (
    BLOCK_ROWS,
    CLIP_S,
    CODEC,
    DECODED,
    GENERATE,
    HOST_CORE_S,
    LAYER_CALLS,
    PASS_CALLS,
    SAVED_BYTES,
    SOURCE_BYTES,
    STREAM_CALLS,
    TASKS,
    TASKS_PER_SECOND,
    TRAIN,
    TRAINING_CALLS,
    Device,
    Machine,
)
from scale_shapes import BFLOAT16, FLOAT32, Base, Codec

TEXT_PER_SECOND = 4.0  # tokens: about three words of speech, as benchmarks/workload.py
BATCH_TOKENS = (8192, 4096, 2048)
"""Of a row: the default of training, down to its longest sequence."""
ROWS = (1, 2, 4, 8, 16)
HELPS = 1.05
RESERVED = 1792
"""Positions that a request of 6 s has pages for: its text, and 20 s of speech, its budget."""
ATTENTION = 256
"""On a GPU a step reads the keys and values of all slots up to one length, that of the longest: one
of this and its doubles (sheen/engine/decode_step.py)."""
USABLE = 0.9
"""Of a GPU's memory; the rest is the CUDA context, the codec's windows and graphs."""


@dataclass(frozen=True)
class Plan:
    """Seconds of each part for one unit of work; the parts run at the same time."""

    parts: dict[str, float]

    @property
    def seconds(self) -> float:
        return max(self.parts.values())

    @property
    def bottleneck(self) -> str:
        return max(self.parts, key=lambda part: self.parts[part])


def encode(codec: Codec, machine: Machine, devices: int) -> Plan:
    """For a second of audio."""
    share = devices / machine.devices
    computing = machine.device.seconds(codec.encoding(), CODEC) / devices
    decoding = 1 / DECODED / (machine.cores * share)
    if machine.device.kind == "CPU":
        return Plan({"cores": computing + decoding})
    moved = SOURCE_BYTES + 2 * codec.sample_rate  # read, and passed on as 16-bit samples
    return Plan(
        {
            "GPU": computing,
            "decoding on CPUs": decoding,
            "network": moved / (machine.network * max(1.0, share)),
            "Ray's tasks": TASKS / (BLOCK_ROWS * CLIP_S) / TASKS_PER_SECOND,
        }
    )


def train(
    base: Base,
    machine: Machine,
    devices: int,
    tokens: float,
    targets: float,
    itemsize: int = BFLOAT16,
    rows: int = 1,
    sharded: bool = False,
) -> Plan:
    """For a step of `rows` rows of so many `tokens` on each of the devices."""
    device = machine.device
    # Gradients are normed and scaled, AdamW reads four and writes three numbers per weight; a share
    # of the arithmetic's peak says nothing about that, so it is at the memory's speed.
    update = (28 + 12) * base.weights / (devices if sharded else 1) / device.bandwidth
    computing = rows * device.seconds(base.training(tokens, targets), TRAIN, itemsize)
    parts = {
        "GPU": computing + update,
        "launching kernels": rows * TRAINING_CALLS * base.layers * device.host_call_s,
    }
    if devices > 1:
        speed = machine.link if devices <= machine.devices else machine.fabric
        # Two bytes for each byte of the gradients' sum; sharded as much, but for every row: weights
        # in bfloat16 gathered twice, gradients in float32 scattered.
        moved = 2 * (devices - 1) / devices * FLOAT32 * base.weights
        parts["network"] = moved * (rows if sharded else 1) / speed
    return Plan(parts)


@dataclass(frozen=True)
class Training:
    """How to train a base on so many GPUs: `tokens` is --batch-tokens, `rows` --accumulation."""

    plan: Plan
    tokens: int
    rows: int
    sharded: bool
    memory: float
    audio_per_second: float


def plan_training(base: Base, codec: Codec, machine: Machine, devices: int) -> Training | None:
    """The first that fits: DDP, then FSDP, with rows of the default or fewer tokens. None: none.

    As few rows per step as keep the network from being the bottleneck, if more of them help.
    """
    scored = codec.tokens_per_second
    per_second = scored + TEXT_PER_SECOND
    for sharded in (False, True)[: 1 + (devices > 1)]:
        for tokens in BATCH_TOKENS:
            memory = training_memory(base, tokens, devices if sharded else 1)
            if memory > USABLE * machine.device.memory:
                continue
            best: Training | None = None
            for rows in ROWS:
                targets = tokens * scored / per_second
                plan = train(base, machine, devices, tokens, targets, BFLOAT16, rows, sharded)
                rate = devices * rows * tokens / plan.seconds / per_second
                if best and rate < HELPS * best.audio_per_second:
                    break
                best = Training(plan, tokens, rows, sharded, memory, rate)
                if plan.bottleneck != "network":
                    break
            return best
    return None


def saved_values(base: Base) -> int:
    """The width of a layer: what is kept for its backward pass is in proportion to it."""
    heads = (base.heads + 2 * base.kv_heads) * base.head_dim
    return 4 * base.hidden + 2 * heads + 3 * base.intermediate


def training_memory(base: Base, tokens: float, shards: int = 1) -> float:
    """Bytes per GPU: weights, gradients and moments in float32, a bfloat16 copy, and what the
    backward pass needs of a row."""
    state = 16 * base.weights / shards + BFLOAT16 * base.body
    return state + tokens * base.layers * saved_values(base) * SAVED_BYTES


@dataclass(frozen=True)
class Load:
    """What the clients of a server ask for."""

    seconds: float = 6.0
    prompt: int = 25
    ramp: tuple[int, ...] = (1, 2, 4, 8, 12)
    reach: int = 3  # frames of context on each side of a window

    def positions(self, codec: Codec) -> float:
        """Of a finished request: every stream is counted as if it were at its end."""
        return self.prompt + self.seconds * codec.tokens_per_second

    def decoded(self, codec: Codec) -> float:
        """Frames that the codec decodes for one that is heard: windows overlap."""
        frames = round(self.seconds * codec.frames_per_second)
        first, count = 0, 0
        for number in range(frames):
            step = self.ramp[min(number, len(self.ramp) - 1)]
            last = min(first + step, frames)
            count += min(last + self.reach, frames) - max(first - self.reach, 0)
            first = last
            if first == frames:
                break
        return count / frames


def attended(positions: float) -> float:
    """The length up to which a GPU's step reads every slot, with so many positions in one."""
    length = float(ATTENTION)
    while length < positions:
        length *= 2
    return length


def step_parts(
    base: Base, device: Device, streams: float, positions: float, itemsize: int
) -> dict[str, float]:
    """Seconds of a pass that gives each stream a token."""
    calls = LAYER_CALLS * base.layers + PASS_CALLS
    if device.kind == "CPU":
        calls += round(STREAM_CALLS * base.layers * streams)
        copied = 0.0
    else:
        positions = attended(positions)
        # Read and written once more, at the memory's speed (decision 0031).
        copied = 2 * itemsize * streams * positions * base.position_values
    work = base.step(streams, positions, itemsize)
    return {
        "launching kernels": calls * device.call_s,
        "weights, keys and values": device.seconds(work, GENERATE, itemsize),
        "copying pages": copied / device.bandwidth,
    }


def speak(
    base: Base, codec: Codec, device: Device, streams: int, load: Load, itemsize: int
) -> dict[str, float]:
    """Seconds of a device for a second of audio of each of the streams, by part."""
    positions = load.positions(codec)
    steps = step_parts(base, device, streams, positions, itemsize)
    parts = {name: codec.tokens_per_second * seconds for name, seconds in steps.items()}
    prompt = base.step(load.prompt, load.prompt, itemsize)
    calls = (LAYER_CALLS * base.layers + PASS_CALLS) * device.host_call_s
    prompts = calls + device.seconds(prompt, GENERATE, itemsize)
    parts["prompts"] = streams * prompts / load.seconds
    decoding = codec.decoding() * load.decoded(codec)
    parts["the codec"] = streams * device.seconds(decoding, CODEC)
    return parts


def cpu_rate(base: Base, codec: Codec, core: Device, streams: int, load: Load) -> float:
    """Audio per second of a replica on a CPU, whose codec has a process and a core of its own."""
    parts = speak(base, codec, core, streams, load, FLOAT32)
    decoding = parts.pop("the codec")
    return streams / max(decoding, sum(parts.values()))


@dataclass(frozen=True)
class Streams:
    """How many each resource of one GPU and its share of the machine can hold."""

    limits: dict[str, int]
    parts: dict[str, float]
    """Of the GPU's time, with as many streams as it has time for."""

    @property
    def held(self) -> int:
        return min(self.limits.values())

    @property
    def bottleneck(self) -> str:
        bottleneck = min(self.limits, key=lambda name: self.limits[name])
        if bottleneck != "GPU time" or not self.held:
            return bottleneck
        return f"GPU: {max(self.parts, key=lambda part: self.parts[part])}"


def serve(base: Base, codec: Codec, machine: Machine, load: Load) -> Streams:
    device = machine.device

    def parts(streams: int) -> dict[str, float]:
        return speak(base, codec, device, streams, load, BFLOAT16)

    held, above = 0, 1 << 14
    while above - held > 1:
        middle = (held + above) // 2
        if sum(parts(middle).values()) <= 1.0:
            held = middle
        else:
            above = middle
    free = USABLE * device.memory - BFLOAT16 * base.weights
    request = BFLOAT16 * base.position_values * RESERVED
    limits = {
        "GPU time": held,
        "GPU memory": max(0, int(free / request)),
        "host CPUs": int(machine.cores / machine.devices / HOST_CORE_S),
    }
    return Streams(limits, parts(held))
