"""Which machines a corpus needs: prints the tables of docs/scale.md.

First the model compared with measurements on this project's CPU (docs/benchmarks.md), then
prepare, encode, train and serve on 1, 8 and 64 GPUs, and a year of speech. The formulas are in
`scale_jobs.py` and `scale_preparing.py`. Takes no time and starts nothing: neither Ray nor torch is
imported.
"""

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scale_jobs import (
    RESERVED,
    Load,
    cpu_rate,
    encode,
    plan_training,
    serve,
    speak,
    step_parts,
    train,
)
from scale_machines import (
    BENCH,
    CODEC,
    DECODED,
    DECODER_GB,
    EPYC_CORE,
    G6E,
    HOST_CORE_S,
    MACHINES,
    P5,
    TRANSCRIBE,
    WORKER_GB,
    Machine,
)
from scale_preparing import AT_ONCE, MODELS, PUBLISHED_BATCH, prepare, published, transcribing
from scale_shapes import BFLOAT16, FLOAT32, INT8, Base, Codec

ROOT = Path(__file__).resolve().parent.parent
SNAC = Codec(encoder_dim=48, decoder_dim=1024)  # hubertsiuzdak/snac_24khz
SMALL_CODEC = Codec(encoder_dim=16, decoder_dim=256)  # examples/english/voice/codec
SMALL = Base.of("small voice", ROOT / "examples" / "english" / "voice")
MEASURED = Base("smaller voice", 6, 256, 704, 4, 2, 64, 12_608)
"""What was measured: a voice of six layers with a tokenizer of bytes."""
ROWS = 151_936 + 12_290  # Qwen3's table with the codec's
QWEN = Base("Qwen3-0.6B", 28, 1024, 3072, 16, 8, 128, ROWS)
BASES = (
    SMALL,
    QWEN,
    Base("Qwen3-1.7B", 28, 2048, 6144, 16, 8, 128, ROWS),
    Base("Qwen3-4B", 36, 2560, 9728, 32, 8, 128, ROWS),
)
"""Published shapes (their config.json)."""
COUNTS = (1, 8, 64)
YEAR = 8760
HOURS = (1000, YEAR, 100_000)

BENCHMARKS = "docs/benchmarks.md"
SIZING = "docs/scale.md"
SHORT = Load(seconds=30 / 11.71875, prompt=30)
"""Of benchmarks/serving.py: 12 to 47 frames, a short sentence."""


@dataclass(frozen=True)
class Row:
    """A measured figure and the model's. `source` is the page that has it, in the words of `cell`.

    `sets`: the share of the job's peak is from this row, so that its agreement shows nothing.
    `missed`: why the model is further off than 20%.
    """

    job: str
    what: str
    cell: str
    measured: float
    model: float
    source: str = BENCHMARKS
    sets: bool = False
    missed: str = ""

    @property
    def error(self) -> float:
        return self.model / self.measured - 1


def compared() -> list[Row]:
    """What was measured on this project's CPU, beside the model of it."""
    core, cores = EPYC_CORE, BENCH.device
    bare = 1 / cores.seconds(SNAC.encoding(), CODEC)
    job = 1 / encode(SNAC, BENCH, 1).seconds
    small = 1 / core.seconds(SMALL_CODEC.encoding(), CODEC)
    rows = [
        Row("encode", "audio s/s: codec alone, 2 processes", "| 21.36 |", 21.36, bare, sets=True),
        Row("encode", "audio s/s: the job, steady", "| 18.39 |", 18.39, job),
        Row(
            "encode",
            "audio s/s: small codec, clips to 3 s, 1 core",
            "the small codec: 37,",
            37.0,
            small,
            "docs/decisions/0019-encoding-at-scale.md",
        ),
    ]
    for layers, targets, rate in ((28, 3729 / 4, 34.6), (4, 7453 / 4, 206.7)):
        base = replace(QWEN, layers=layers)
        model = targets / train(base, BENCH, 1, 1.05 * targets, targets, FLOAT32).seconds
        what = f"targets/s: {layers} layers"
        rows.append(Row("train", what, f"| {rate} |", rate, model, sets=layers == 28))
    for streams, cell, ms in ((1, "1 stream | 53.4 |", 53.4), (8, "8 streams | 9.4 |", 9.4)):
        model = 1e3 * sum(step_parts(QWEN, cores, streams, 70, BFLOAT16).values()) / streams
        what = f"ms per token: Qwen3-0.6B's shape, {streams} at once"
        rows.append(Row("serve", what, cell, ms, model, sets=streams == 1))
    for streams, rate in ((16, 16.77), (32, 21.18)):
        model = cpu_rate(MEASURED, SMALL_CODEC, core, streams, SHORT)
        what = f"audio s/s: {MEASURED.name}, {streams} at once"
        rows.append(Row("serve", what, f"| {streams} | Sheen | {rate} |", rate, model))
    speech = 16 * 30 / SMALL_CODEC.frames_per_second
    windows = speech * speak(MEASURED, SMALL_CODEC, core, 1, SHORT, FLOAT32)["the codec"]
    rows.append(
        Row(
            "serve",
            "s: the codec, 16 streams of 30 frames",
            "30 frames took 1.84 s on one thread",
            1.84,
            windows,
        )
    )
    step = 1e3 * sum(step_parts(MEASURED, core, 16, 135, FLOAT32).values())
    what, cached = f"ms: a step of the {MEASURED.name}, 16 at once", "its weights stay in the cache"
    rows.append(Row("serve", what, "7.5 to 8.4 ms", 7.95, step, missed=cached))
    return rows + compared_preparing()


def compared_preparing() -> list[Row]:
    """The rows of transcribing: on the CPU, and a GPU's as published."""
    tiny, base, *_ = MODELS
    window = EPYC_CORE.seconds(tiny.window(INT8), TRANSCRIBE, INT8)
    what = "CPU s: a window of tiny.en"
    rows = [Row("prepare", what, "| tiny.en | 0.40 |", 0.4, window, sets=True)]
    for model, text, cell, measured in (
        (tiny, 73, "| 0.58 | 0.75 |", 0.75),
        (base, 32, "| 0.84 | 1.06 | 1.19 |", 1.19),
        (base, 72, "| 1.19 | 1.60 |", 1.6),
    ):
        what = f"CPU s: a segment with {text} tokens, {model.name}"
        rows.append(Row("prepare", what, cell, measured, transcribing(model, EPYC_CORE, text)))
    for clips, took in ((1, 63), (PUBLISHED_BATCH, 17)):
        what = f"s: 13 minutes, large-v2 on a 3070 Ti, {clips} at once"
        cell = f"{took} s for {clips} at once"
        rows.append(Row("prepare", what, cell, took, published(clips), SIZING, sets=clips == 1))
    return rows


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    names = head.split(" | ")
    lines = [f"| {head} |", "|" + "---|" * len(names)]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def number(value: float) -> str:
    """To two digits, or three from ten on: more would claim too much."""
    digits = 3 if value >= 10 else 2
    return f"{float(f'{value:.{digits}g}'):,g}"


def gpus(machine: Machine, count: int) -> str:
    return f"{count} {machine.device.name}"


def comparison() -> str:
    def cells(row: Row) -> Sequence[object]:
        figures = f"{row.measured:g}", number(row.model), f"{row.error:+.0%}"
        return row.job, row.what, *figures, "sets the share" if row.sets else row.missed

    return table("job | figure | measured | model | off by | note", map(cells, compared()))


def codec_table() -> str:
    rows = []
    codecs = {"snac_24khz, published": SNAC, "examples/english/voice/codec": SMALL_CODEC}
    for name, codec in codecs.items():
        works = codec.encoding(), codec.decoding()
        rows.append((name, *(number(v / 1e9) for w in works for v in (w.flops / 2, w.bytes))))
    return table("codec | encode, GMAC | encode, GB | decode, GMAC | decode, GB", rows)


def base_table() -> str:
    rows = []
    for base in BASES:
        request = BFLOAT16 * base.position_values * RESERVED
        trained = base.training(1, 1).flops
        figures = base.weights / 1e6, base.step(1, 0, BFLOAT16).flops / 2e9, trained / 2e9
        rows.append((base.name, *map(number, (*figures, request / 1e6))))
    return table("base | M weights | step, GMAC | training, GMAC | request, MB", rows)


def preparing_table() -> str:
    rows = []
    for model in MODELS:
        for machine in MACHINES:
            plan = prepare(model, machine)
            cells = map(number, (1 / plan.seconds, plan.cores, HOURS[0] * plan.seconds))
            unused = f"{plan.gpu / plan.seconds:.0%}"
            together = number(1 / plan.batched), number(plan.gpu / plan.batched)
            row = (model.name, machine.device.name, *cells, unused, plan.bottleneck, *together)
            rows.append(row)
    batched = f"GPU alone, {AT_ONCE} at once, audio h/h | compared with 1 at once"
    columns = f"audio h/h | cores | {HOURS[0]:,} h take, GPU h | GPU busy | bottleneck"
    return table(f"ASR | GPU | {columns} | {batched}", rows)


def encoding_table() -> str:
    rows = []
    for machine in MACHINES:
        for count in COUNTS:
            plan = encode(SNAC, machine, count)
            cores = 1 / plan.seconds / DECODED / count
            memory = WORKER_GB + DECODER_GB * math.ceil(cores)
            spent = [number(hours * plan.seconds) for hours in HOURS]
            rate = number(1 / plan.seconds)
            needs = number(cores), number(memory)
            rows.append((gpus(machine, count), rate, *needs, *spent, plan.bottleneck))
    hours = " | ".join(f"{hours:,} h take, h" for hours in HOURS)
    return table(f"GPUs | audio h/h | cores per GPU | RAM per GPU, GB | {hours} | bottleneck", rows)


def sizing_table() -> str:
    rows = []
    for base in BASES[1:]:
        for machine in (G6E, P5):
            streams = serve(base, SNAC, machine, Load()).held
            for count in COUNTS:
                plan = plan_training(base, SNAC, machine, count)
                cells: tuple[object, ...] = ("–",) * (4 + len(HOURS)) + ("GPU memory",)
                if plan:
                    how = "fsdp" if plan.sharded else "ddp", plan.tokens, plan.rows
                    spent = [number(hours / plan.audio_per_second) for hours in HOURS]
                    cells = number(plan.memory / 1e9), *how, *spent, plan.plan.bottleneck
                rows.append((base.name, gpus(machine, count), *cells, f"{streams * count:,}"))
    columns = "GB per GPU | strategy | batch tokens | accumulation"
    hours = " | ".join(f"{hours:,} h take, h" for hours in HOURS)
    return table(f"base | GPUs | {columns} | {hours} | bottleneck | streams", rows)


def serving_table() -> str:
    rows = []
    for base in BASES:
        for machine in MACHINES:
            streams = serve(base, SNAC, machine, Load())
            cores = streams.held * HOST_CORE_S
            limits = streams.limits.values()
            device = machine.device.name
            rows.append(
                (base.name, device, streams.held, *limits, number(cores), streams.bottleneck)
            )
    limits_head = "time for | memory for | host CPUs for"
    return table(f"base | GPU | streams | {limits_head} | cores | bottleneck", rows)


def year_table() -> str:
    rows = []
    for machine in MACHINES:
        encoding = YEAR * encode(SNAC, machine, 1).seconds
        plan = plan_training(QWEN, SNAC, machine, 1)
        assert plan
        training = YEAR / plan.audio_per_second
        streams = serve(QWEN, SNAC, machine, Load())
        speaking = YEAR / streams.held
        spent = map(number, (encoding, YEAR / DECODED, training, speaking, YEAR * HOST_CORE_S))
        rows.append((machine.device.name, *spent))
    parts = "encode, GPU h | encode, core h | train an epoch, GPU h | speak, GPU h | speak, core h"
    return table(f"GPU | {parts}", rows)


def tables() -> dict[str, str]:
    """The tables of docs/scale.md, by the heading they stand under."""
    return {
        "A second of audio": codec_table(),
        "A token": base_table(),
        "The model compared with measurements": comparison(),
        "Prepare": preparing_table(),
        "Encode": encoding_table(),
        "Train and serve": sizing_table(),
        "Streams per GPU": serving_table(),
        "A year of speech": year_table(),
    }


def main() -> int:
    for heading, text in tables().items():
        print(f"## {heading}\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
