"""A crowd before a running endpoint: do the first streams keep their pace?

As many listeners as the server has slots ask at once, alone; then again, and while they hear, a
crowd asks. The pace of the first: seconds from asking to the end, underruns and silence missed,
alone beside in company. What became of the crowd: spoken, refused, failed, and how soon the refused
knew; with `--come-back` also whether they find a place when they come back as they were told to.
Like `serve.py` it drives any endpoint of OpenAI's.
"""

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
from aiohttp import ClientSession
from serve import TEXTS, lines_of
from serve_client import (
    REFUSED,
    Endpoint,
    Outcome,
    UsageError,
    ask,
    base_of,
    first_id,
    open_session,
)

HEAD_START_S = 0.3
"""The first have begun to hear by then."""


def row(name: str, outcomes: Sequence[Outcome]) -> str:
    """Figures of the requests that went well: a refusal is over at once, and no pace."""
    good = [outcome for outcome in outcomes if outcome.ok]
    cells = [name, f"{len(good)} of {len(outcomes)}"]
    if not good:
        return f"| {' | '.join([*cells, *5 * ['–']])} |"
    took = [outcome.ended - outcome.asked for outcome in good]
    audio = sum(outcome.listener.seconds for outcome in good)
    missed = sum(outcome.listener.missed_s for outcome in good) / len(good)
    figures = [f"{np.mean(took):.2f}", f"{max(took):.2f}", f"{sum(took) / audio:.2f}"]
    underruns = str(sum(outcome.listener.underruns for outcome in good))
    return f"| {' | '.join([*cells, *figures, underruns, f'{missed:.3f}'])} |"


def told(who: str, outcomes: Sequence[Outcome]) -> str:
    """What became of some requests."""
    refused = [outcome.ended - outcome.asked for outcome in outcomes if outcome.refused]
    errors = Counter(outcome.error for outcome in outcomes if outcome.error)
    soon = f" after {np.median(refused):.2f} s (longest {max(refused):.2f} s)" if refused else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in errors.items())
    return (
        f"{who}, {len(outcomes)} requests: {sum(outcome.ok for outcome in outcomes)} spoken, "
        f"{len(refused)} refused with {REFUSED}{soon}, {errors.total()} failed"
        + (f" ({kinds})." if kinds else ".")
    )


async def again(session: ClientSession, endpoint: Endpoint, text: str, refusal: Outcome) -> Outcome:
    await asyncio.sleep(refusal.retry_s)
    return await ask(session, endpoint, text)


async def run(options: argparse.Namespace) -> int:
    drawn = np.random.default_rng(0).choice(lines_of(TEXTS), options.first + options.crowd)
    texts, crowd_texts = drawn[: options.first].tolist(), drawn[options.first :].tolist()
    async with open_session(options.api_key, 60.0) as session:
        model = options.model or await first_id(
            session, f"{options.url}/v1/models", "data", "--model"
        )
        voice = options.voice or await first_id(
            session, f"{options.url}/v1/audio/voices", "voices", "--voice"
        )
        endpoint = Endpoint(options.url, model, voice, "pcm", "audio")
        await asyncio.gather(*(ask(session, endpoint, text) for text in texts))  # warm-up
        alone: list[Outcome] = []
        company: list[Outcome] = []
        crowd: list[Outcome] = []
        back: list[Outcome] = []
        for _ in range(options.rounds):
            alone += await asyncio.gather(*(ask(session, endpoint, text) for text in texts))
            first = [asyncio.create_task(ask(session, endpoint, text)) for text in texts]
            await asyncio.sleep(HEAD_START_S)
            came = await asyncio.gather(*(ask(session, endpoint, text) for text in crowd_texts))
            crowd += came
            if options.come_back:
                back += await asyncio.gather(
                    *(
                        again(session, endpoint, text, outcome)
                        for text, outcome in zip(crowd_texts, came, strict=True)
                        if outcome.refused
                    )
                )
            company += await asyncio.gather(*first)
    print(
        "| the first | ok | seconds, mean | longest | per second of audio | underruns | missed, s |"
    )
    print("|---|---|---|---|---|---|---|")
    print(row("alone", alone))
    print(row(f"with {options.crowd} more", company))
    print(f"\n{told('The crowd', crowd)}")
    if options.come_back:
        print(told("Of the refused, when they were told to come back", back))
    return 0 if all(outcome.ok for outcome in (*alone, *company)) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", type=base_of, default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("SHEEN_API_KEY", ""))
    parser.add_argument("--model", help="default: the server's first")
    parser.add_argument("--voice", help="default: the server's first")
    parser.add_argument("--first", type=int, default=8, help="listeners, as many as slots")
    parser.add_argument("--crowd", type=int, default=56, help="requests that come later")
    parser.add_argument("--come-back", action="store_true", help="ask again after Retry-After")
    parser.add_argument("--rounds", type=int, default=5)
    try:
        return asyncio.run(run(parser.parse_args(arguments)))
    except UsageError as error:
        print(f"benchmarks/serve_crowd.py: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
