"""Load on a running speech endpoint: when it is first heard, underruns, and the rate it holds.

    python benchmarks/serve.py --url http://127.0.0.1:8000 --concurrency 1 4 8 16
    python benchmarks/serve.py --rate 0.5 1 2 --format mp3
    python benchmarks/serve.py --find-rate --max-ttfa 0.3 --max-underruns 0.01

Works with any server of OpenAI's contract. Owns the flags and the run; the kinds of load are in
`serve_loops.py`, what the figures mean in `serve_report.py` and `listener.py`. Progress goes to
stderr, the table to stdout.
"""

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import numpy as np
from serve_audio import FORMATS
from serve_client import Endpoint, Outcome, UsageError, ask, base_of, first_id, open_session
from serve_loops import closed_loop, highest_rate, open_loop
from serve_report import HEADER, Row, circumstances

TEXTS = Path(__file__).resolve().parent.parent / "examples" / "english" / "everyday.txt"
DEFAULT_CONCURRENCY = [1, 4, 8, 16]
DEFAULT_REQUESTS = 40
SEARCH_S = 30.0
"""Of one rate in a search: long enough for a queue that only grows to show."""


def lines_of(path: str | Path) -> list[str]:
    """A text a line. Raises UsageError if there is none."""
    try:
        lines = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--texts {path}: {error}") from error
    if not (texts := [line for line in lines if line]):
        raise UsageError(f"--texts {path}: no lines of text")
    return texts


class Load:
    """The rows of one run against one endpoint."""

    def __init__(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, options: argparse.Namespace
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._options = options
        self._lines = lines_of(options.texts)
        self.rows: list[Row] = []

    def _texts(self, generator: np.random.Generator) -> Iterator[str]:
        while True:
            yield str(generator.choice(self._lines))

    async def warm_up(self) -> None:
        """Requests one after the other that are not counted."""
        texts = self._texts(np.random.default_rng(self._options.seed))
        for _ in range(self._options.warm_up):
            await ask(self._session, self._endpoint, next(texts))

    async def row(self, *, concurrency: int = 0, rate: float = 0.0) -> Row:
        """Measure one load and print it. Every row has the same texts."""
        options = self._options
        arrivals, drawing = np.random.default_rng(options.seed).spawn(2)
        texts = self._texts(drawing)

        def ask_one() -> Awaitable[Outcome]:
            return ask(self._session, self._endpoint, next(texts))

        wall, processor = time.monotonic(), time.process_time()
        if concurrency:
            name = f"{concurrency} at once"
            progress(f"{name} …")
            requests = options.requests or max(DEFAULT_REQUESTS, 4 * concurrency)
            outcomes = await closed_loop(ask_one, concurrency, requests, options.duration)
        else:
            name = f"{rate:.3g}/s"
            progress(f"{name} …")
            requests = options.requests or DEFAULT_REQUESTS
            outcomes = await open_loop(ask_one, rate, requests, options.duration, arrivals)
        wall, processor = time.monotonic() - wall, time.process_time() - processor
        row = Row.of(name, outcomes, wall, processor)
        self.rows.append(row)
        print(row.markdown(), flush=True)
        for remark in row.remarks():
            progress(f"{name}: {remark}")
        return row

    async def search(self) -> float | None:
        """The highest rate that holds (`Row.held`), requests per second."""
        options = self._options
        bounds = options.max_ttfa, options.max_underruns

        async def holds(rate: float) -> bool:
            return (await self.row(rate=rate)).held(*bounds)

        # What one listener alone does not get, no rate holds.
        alone = await self.row(concurrency=1)
        start = (options.rate or [1.0])[0]
        rate = await highest_rate(holds, start) if alone.held(*bounds) else None
        print(
            f"\nHeld: {f'{rate:.3g} requests per second' if rate else 'no rate'} (p95 of TTFA at "
            f"most {bounds[0]:g} s, at most {bounds[1]:.0%} of requests with an underrun, none "
            "failed)"
        )
        return rate


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` writes. Raises UsageError."""
    async with open_session(options.api_key, options.timeout) as session:
        model, voice = options.model, options.voice
        if not model:
            model = await first_id(session, f"{options.url}/v1/models", "data", "--model")
        if not voice:
            voice = await first_id(session, f"{options.url}/v1/audio/voices", "voices", "--voice")
        endpoint = Endpoint(options.url, model, voice, options.format, options.stream_format)
        load = Load(session, endpoint, options)
        progress(f"{options.url}, model {model}, voice {voice}, {options.format}")
        await load.warm_up()
        print(HEADER, flush=True)
        found: dict[str, Any] = {}
        if options.find_rate:
            found["rate_held"] = await load.search()
        else:
            for concurrency in options.concurrency:
                await load.row(concurrency=concurrency)
            for rate in options.rate:
                await load.row(rate=rate)
    named = {name: value for name, value in vars(options).items() if name != "api_key"}
    used = {"options": named | {"model": model, "voice": voice}}
    return circumstances() | used | found | {"rows": [asdict(row) for row in load.rows]}


class _OneLineErrors(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Exits with one line on stderr if a flag is wrong."""
    parser = _OneLineErrors(prog="benchmarks/serve.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", help="(default: %(default)s)")
    add("--concurrency", type=_count, nargs="+", help="listeners at once (default: 1 4 8 16)")
    add("--rate", type=_positive, nargs="+", help="requests per second; the first starts a search")
    add("--find-rate", action="store_true", help="search the highest rate held")
    add("--max-ttfa", type=_positive, default=0.3, help="p95, seconds (default: %(default)s)")
    add("--max-underruns", type=_share, default=0.01, help="share of requests with any")
    add("--requests", type=_count, help="at least so many a row (default: 40, or 4 per listener)")
    add("--duration", type=_positive, help="and at least so many seconds (default: 30 in a search)")
    add("--warm-up", type=int, default=4, help="requests before the first row (default: 4)")
    add("--model", help="(default: the first of /v1/models)")
    add("--voice", help="(default: the first of /v1/audio/voices)")
    add("--texts", default=str(TEXTS), help="file, a text a line (default: everyday sentences)")
    add("--format", choices=FORMATS, default="pcm")
    add("--stream-format", choices=("audio", "sse"), default="audio")
    add("--timeout", type=_positive, default=60.0, help="seconds without a byte (default: 60)")
    add("--seed", type=int, default=0, help="of arrivals and texts")
    add("--api-key", default=os.environ.get("SHEEN_API_KEY", ""), help="or SHEEN_API_KEY")
    add("--json", help="file for the figures")
    options = parser.parse_args(argv)
    if options.find_rate and options.concurrency:
        parser.error("--find-rate searches a rate: leave --concurrency out")
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"--url {options.url}: expected http://… or https://…")
    if options.json and not Path(options.json).absolute().parent.is_dir():
        parser.error(f"--json {options.json}: no such folder")
    options.url = base_of(options.url)
    if not options.concurrency and not options.rate and not options.find_rate:
        options.concurrency = DEFAULT_CONCURRENCY
    options.concurrency, options.rate = options.concurrency or [], options.rate or []
    options.duration = options.duration or (SEARCH_S if options.find_rate else 0.0)
    return options


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    try:
        found = asyncio.run(run(options))
    except UsageError as error:
        print(f"benchmarks/serve.py: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
