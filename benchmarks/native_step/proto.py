# ruff: noqa
"""The native step in place of TokenGenerator's, on the shipped voice: exactness, and times."""

import argparse, ctypes, gc, statistics, subprocess, sys, time
from pathlib import Path
import torch
from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Sampling
from sheen.lm.checkpoint import read_info
from sheen.lm.model_files import load_model

HERE = Path(__file__).parent
VOICE = "examples/english/voice"
torch.set_num_threads(1)


def build():
    subprocess.run(
        [
            "g++",
            "-O3",
            "-march=native",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            "-o",
            HERE / "step.so",
            HERE / "step.cpp",
        ],
        check=True,
    )
    lib = ctypes.CDLL(str(HERE / "step.so"))
    lib.native_new.restype = ctypes.c_void_p
    lib.native_new.argtypes = [ctypes.c_int] * 6 + [ctypes.c_float, ctypes.c_int]
    P, I = ctypes.c_void_p, ctypes.c_int64
    lib.native_layer.argtypes = [P, ctypes.c_int] + [P] * 8
    lib.native_block.argtypes = [P, ctypes.c_int, P, ctypes.c_int]
    lib.native_rest.argtypes = [P] * 5
    lib.native_step.argtypes = [P, P, I, ctypes.c_int] + [P] * 10 + [I, P, P]
    lib.native_step.restype = None
    return lib


def load(layers, random):
    info = read_info(VOICE)
    model, _ = load_model(VOICE, info.token_layout)
    model.lm.model.layers = model.lm.model.layers[:layers]
    model.lm.config.num_hidden_layers = layers
    if random:
        torch.manual_seed(0)
        for w in model.lm.parameters():
            w.data = (torch.randn_like(w) * w.std() if w.ndim > 1 else w.data).bfloat16().float()
    raw = {k: v.detach().clone() for k, v in model.lm.state_dict().items()}
    model.freeze()
    return model, raw


class Native:
    def __init__(self, lib, model, raw, bf16, positions):
        c = model.lm.config
        self.lib, self.layout = lib, model.layout
        blocks = model.layout.blocks
        self.handle = lib.native_new(
            c.num_hidden_layers,
            c.hidden_size,
            c.num_attention_heads,
            c.num_key_value_heads,
            c.intermediate_size,
            bf16,
            c.rms_norm_eps,
            len(blocks),
        )
        self.keep = []

        def ptr(t):
            t = t.contiguous()
            self.keep.append(t)
            return t.data_ptr()

        for n in range(c.num_hidden_layers):
            g = lambda name: raw[f"model.layers.{n}.{name}.weight"]
            a, m = "self_attn.", "mlp."
            lib.native_layer(
                self.handle,
                n,
                ptr(torch.cat([g(a + "q_proj"), g(a + "k_proj"), g(a + "v_proj")])),
                ptr(g(a + "o_proj")),
                ptr(torch.cat([g(m + "gate_proj"), g(m + "up_proj")])),
                ptr(g(m + "down_proj")),
                ptr(g("input_layernorm")),
                ptr(g("post_attention_layernorm")),
                ptr(g(a + "q_norm")),
                ptr(g(a + "k_norm")),
            )
        table = raw["model.embed_tokens.weight"]
        for n, block in enumerate(blocks):
            columns = model.layout.columns(block)
            rows = (
                table[columns.start : columns.stop]
                if isinstance(columns, range)
                else table[list(columns)]
            )
            lib.native_block(self.handle, n, ptr(rows), len(rows))
        cos, sin = model.lm.model.rotary_emb(table, torch.arange(positions)[None])
        sign = torch.ones(64)
        sign[:32] = -1
        lib.native_rest(
            self.handle, ptr(raw["model.norm.weight"]), ptr(table), ptr(cos[0]), ptr(sin[0] * sign)
        )


class NativeGenerator(TokenGenerator):
    """Tokens natively, prompts as before; the arena is the engine's own."""

    native, logits = None, None

    def _packed(self, running, chunks):
        if chunks:
            super()._packed([], chunks)
        if running:
            self.call(self.arguments(running))

    def arguments(self, running):
        key, n = ("native", *running), len(running)
        if (kept := self._kept.get(key)) is None:
            s = [self.sampler._settings[slot] for slot in running]
            ints, floats = ctypes.c_int64 * n, ctypes.c_float * n
            kept = self._kept[key] = (
                ints(*running),
                ints(*(self.cache._tables[slot].first for slot in running)),
                floats(*(x.temperature for x in s)),
                floats(*(x.top_p for x in s)),
                ints,
                ctypes.c_int * n,
            )
        slots, first, temperature, top_p, ints, small = kept
        blocks, per = self.layout.slot_blocks, len(self.layout.slot_blocks)
        req = [self._requests[slot] for slot in running]
        phases = [r.step % per for r in req]
        return (
            n,
            self._tokens.data_ptr(),
            slots,
            ints(*[r.position for r in req]),
            first,
            small(*[blocks[p] for p in phases]),
            ints(*[self.layout.blocks[blocks[p]].base - 1 for p in phases]),
            small(*[int(p > 0 or r.step < r.min_tokens) for p, r in zip(phases, req)]),
            temperature,
            top_p,
            self.sampler._uniforms.data_ptr(),
            self.sampler._uniforms.shape[1],
            ints(*[r.step for r in req]),
            None if self.logits is None else self.logits.data_ptr(),
        )

    def call(self, arguments):
        arena = self.cache._arena
        self.native.lib.native_step(
            self.native.handle, arena.data_ptr(), arena.shape[3], *arguments
        )


def prompts(model, rows, length):
    g = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 300, (length + (n * 5 if length < 100 else 0),), generator=g).tolist()
        + [model.layout.start_id]
        for n in range(rows)
    ]


def generator(kind, model, native, rows, sampling, length, tokens):
    gen = kind(model, rows, 448)
    gen.native = native
    for slot, prompt in enumerate(prompts(model, rows, length)):
        gen.start(slot, prompt, Sampling(temperature=sampling, seed=slot), tokens, tokens)
    return gen


def check(lib, model, raw, natives):
    # 1. Rows equal to the bit for every number of rows, and bfloat16 equal to float32.
    found = {}
    for name, native in natives.items():
        gen = generator(NativeGenerator, model, native, 16, 0.0, 40, 300)
        gen.step()
        for _ in range(150):
            gen.step()
        for mixed in (0, 1):
            if mixed:
                for slot in range(16):
                    gen._requests[slot].step -= slot % 7
            tokens, arena = gen._tokens.clone(), gen.cache._arena.clone()
            alone = {}
            for count in range(1, 17):
                for start in {0, 16 - count, (16 - count) // 2} if count > 1 else range(16):
                    part = [*range(start, start + count)]
                    gen._tokens.copy_(tokens)
                    gen.cache._arena.copy_(arena)
                    gen.logits = torch.zeros(count, 4097)
                    gen.call(gen.arguments(part))
                    after = gen.cache._arena
                    for n, slot in enumerate(part):
                        first, at = gen.cache._tables[slot].first, gen._requests[slot].position
                        mine = (
                            gen.logits[n].clone(),
                            int(gen._tokens[slot]),
                            after[:, 0, :, first + at].clone(),
                        )
                        if count == 1:
                            alone[slot] = mine
                        else:
                            assert (
                                torch.equal(mine[0], alone[slot][0])
                                and mine[1] == alone[slot][1]
                                and torch.equal(mine[2], alone[slot][2])
                            ), (name, count, slot)
            gen._tokens.copy_(tokens)
            gen.cache._arena.copy_(arena)
            gen.logits = None
            found[name, mixed] = (
                [alone[s][0] for s in range(16)],
                [int(p) for p in (r.position for r in gen._requests.values())],
            )
        print(
            f"{name}: rows equal to the bit for 1 to 16 rows, positions {min(found[name, 0][1])} to {max(found[name, 0][1])}, one phase and mixed ones"
        )
    assert all(
        torch.equal(a, b)
        for m in (0, 1)
        for a, b in zip(found["float32", m][0], found["bfloat16", m][0])
    )
    print("bfloat16 storage equals float32 storage to the bit")
    # 2. Logits against the torch path: the same ids, positions and cache, teacher-forced for 210 steps.
    seen = {}
    today = generator(TokenGenerator, model, None, 4, 0.0, 40, 300)
    ours = generator(NativeGenerator, model, natives["float32"], 4, 0.0, 40, 300)
    ours.logits = torch.zeros(4, 4097)
    real = today.sampler.choose
    today.sampler.choose = lambda l, *a: (seen.update(l=l.clone()), real(l, *a))[1]
    today.step()
    ours.step()
    worst, scale, differ, gap = 0.0, 0.0, 0, 0.0
    for _ in range(210):
        today.step()
        ours.step()
        a, b = seen["l"][:, 1:], ours.logits[:, 1:]
        worst, scale = max(worst, (a - b).abs().max().item()), max(scale, a.abs().max().item())
        other = today._tokens != ours._tokens
        differ += int(other.sum())
        ours._tokens.copy_(today._tokens)
    print(
        f"against torch, 4 x 210 steps, own caches: largest logit {scale:.2f}, largest difference {worst:.2e}; greedy tokens that differ: {differ} of 840"
    )
    for t in (0.0, 0.3):
        runs = []
        for kind, native in ((TokenGenerator, None), (NativeGenerator, natives["bfloat16"])):
            gen = generator(kind, model, native, 8, t, 40, 300)
            runs.append([gen.step().read() for _ in range(280)])
        a, b = (torch.tensor(r).T for r in runs)
        same = [(int((x != y).nonzero()[0]) if (x != y).any() else 280) for x, y in zip(a, b)]
        print(f"temperature {t}: free-running, tokens equal for the first {same} of 280")


COLD = None


def evict():
    if COLD is not None:
        COLD.add_(1)  # 256 MB: neither weights nor keys are in a cache


def busy():
    """Seconds of all cores: by this process, by anyone, stolen."""
    f = [int(x) / 100 for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return time.process_time(), sum(f[:3]) + f[5] + f[6], f[7], time.time()


def one(gen, step):
    evict()
    for r in gen._requests.values():
        r.step = step
    t, w = time.thread_time_ns(), time.perf_counter_ns()
    gen.step().read()
    return time.perf_counter_ns() - w, time.thread_time_ns() - t


def bare(gen, args):
    evict()
    t, w = time.thread_time_ns(), time.perf_counter_ns()
    gen.call(args)
    return time.perf_counter_ns() - w, time.thread_time_ns() - t


def measure(model, natives, rows, rounds, steps):
    # A prompt of 194 tokens (prefilled), a token of it, then every step is that at position 200.
    at, sides = 6, {}
    for name, kind, native, t in (
        ("today, T 0.3", TokenGenerator, None, 0.3),
        ("today, greedy", TokenGenerator, None, 0.0),
        ("float32 in the engine, T 0.3", NativeGenerator, "float32", 0.3),
        ("bfloat16 in the engine, T 0.3", NativeGenerator, "bfloat16", 0.3),
        ("bfloat16 in the engine, greedy", NativeGenerator, "bfloat16", 0.0),
        ("float32, the call, greedy", NativeGenerator, "float32", 0.0),
        ("bfloat16, the call, greedy", NativeGenerator, "bfloat16", 0.0),
    ):
        gen = generator(kind, model, natives.get(native), rows, t, 194, 200)
        while any(r.step < at for r in gen._requests.values()):
            gen.step()
        for r in gen._requests.values():
            r.step = at
        assert {r.position for r in gen._requests.values()} == {200}
        if ", the call" in name:
            args = gen.arguments([*range(rows)])
            sides[name] = lambda g=gen, a=args: bare(g, a)
        else:
            sides[name] = lambda g=gen: one(g, at)
    with torch.inference_mode():
        times = {name: [] for name in sides}
        gc.disable()
        before = busy()
        for n in range(rounds):
            for name in list(sides) if n % 2 else list(sides)[::-1]:
                got = [sides[name]() for _ in range(steps + 3)][3:]
                times[name].append(got)
        gc.enable()
        own, anyone, stolen, wall = (b - a for a, b in zip(before, busy()))
        print(
            f"({wall:.0f} s; this process {own / wall:.2f} cores, others {(anyone - own) / wall:.2f}, stolen {stolen / wall:.2f}; {rounds * steps} steps each)"
        )

    def figures(name):
        flat = [x for block in times[name] for x in block]
        return [f(x[i] for x in flat) / 1e6 for i in (0, 1) for f in (min, statistics.median)]

    base = (
        [min(x[0] for x in b) for b in times["today, T 0.3"]],
        [statistics.median(x[0] for x in b) for b in times["today, T 0.3"]],
    )
    for name in sides:
        f = figures(name)
        ratio = [
            statistics.median(
                b / o for b, o in zip(base[i], [g(x[0] for x in blk) for blk in times[name]])
            )
            for i, g in ((0, min), (1, statistics.median))
        ]
        print(
            f"| {rows} | {name} | {f[0]:.2f} | {f[1]:.2f} | {f[2]:.2f} | {f[3]:.2f} | {ratio[0]:.2f} | {ratio[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--check", action="store_true")
    o = parser.parse_args()
    if o.cold:
        COLD = torch.zeros(64 << 20)
    lib = build()
    model, raw = load(o.layers, o.random)
    natives = {
        name: Native(lib, model, raw, bf, 512) for name, bf in (("float32", 0), ("bfloat16", 1))
    }
    print(o, f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}")
    if o.check:
        check(lib, model, raw, natives)
    print(
        "| rows | | wall min | median | thread min | median | x today, of block minima | of block medians |"
    )
    for rows in o.rows:
        measure(model, natives, rows, o.rounds, o.steps)
