"""A flood before a running server of ours: does it hold, and does a listener beside it notice?

A listener asks again and again, before the flood, while it lasts, and after it. The flood: bodies
that trickle, messages that are far too large, tables of numbers whose clients do not wait. What is
measured: the listener's first byte, how each part of the flood was ended, and the memory of the
proxy and the replica (Linux, where the server runs), which must be as before.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import psutil
from serve import digits
from serve_client import SPEECH, Endpoint, Outcome, ask, first_id, open_session

BODY_BYTES = 500
TRICKLE_S = 0.5
PATIENCE_S = 60.0
"""For a trickling body to be ended; a server that has not by then never does."""
TABLE = "3.14, 2.71, 1.41, 1.73, " * 41
LEAVES_S = 1.5
SETTLE_S = 5.0


@dataclass
class Flood:
    """Where it goes, and how its parts were ended."""

    url: str
    headers: dict[str, str]
    start: dict[str, str]
    ended: dict[str, Counter[str]] = field(default_factory=dict)

    def note(self, part: str, how: object) -> None:
        self.ended.setdefault(part, Counter())[str(how)] += 1

    async def trickle(self) -> None:
        """One body, a byte at a time."""
        place = urlsplit(self.url)
        headers = {
            "Host": place.netloc,
            "Content-Type": "application/json",
            "Content-Length": str(BODY_BYTES),
            **self.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        answer = asyncio.create_task(reader.read())  # until the server closes
        how = "never ended"
        try:
            writer.write(f"POST {place.path}{SPEECH} HTTP/1.1\r\n{lines}\r\n{{".encode())
            deadline = time.monotonic() + PATIENCE_S
            while not answer.done() and time.monotonic() < deadline:
                await asyncio.wait([answer], timeout=TRICKLE_S)
                writer.write(b" ")
            if answer.done():
                how = f"closed with {(answer.result().split() or [b'', b'nothing'])[1].decode()}"
        except OSError as error:
            how = f"closed: {type(error).__name__}"
        finally:
            answer.cancel()
            writer.close()
        self.note("trickling bodies", how)

    async def shout(self, session: aiohttp.ClientSession, size: int) -> None:
        """One message that is far too large, on a WebSocket of its own."""
        try:
            async with session.ws_connect(f"{self.url}{SPEECH}/stream", max_msg_size=0) as socket:
                await socket.send_json(self.start)
                with contextlib.suppress(ConnectionError):
                    await socket.send_json({"type": "text", "text": "x" * size})
                while not (await socket.receive(PATIENCE_S)).type.name.startswith("CLOS"):
                    pass
            self.note("messages", f"closed with {socket.close_code}")
        except (aiohttp.ClientError, TimeoutError) as error:
            self.note("messages", type(error).__name__)

    async def shouts(self, session: aiohttp.ClientSession, count: int, size: int) -> None:
        for _ in range(count):
            await self.shout(session, size)

    async def ask_and_leave(self, session: aiohttp.ClientSession) -> None:
        """A table of numbers for a listener who does not wait."""
        body = {"model": "sheen", "input": TABLE, "voice": self.start["voice"]}
        try:
            async with asyncio.timeout(LEAVES_S):
                async with session.post(f"{self.url}{SPEECH}", json=body) as response:
                    self.note("tables", f"HTTP {response.status}")
                    await response.read()
        except TimeoutError:
            self.note("tables", "left")


def serving_processes(port: int) -> list[psutil.Process]:
    """The proxy that listens on a port of this machine, and the replicas of its cluster."""
    listening = [
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    if not listening or listening[0] is None:
        return []
    proxy = psutil.Process(listening[0])
    parent = proxy.parent()
    workers = parent.children() if parent else []
    replicas = [
        one for one in workers if (one.cmdline() or [""])[0].startswith("ray::ServeReplica")
    ]
    return [proxy, *replicas]


def megabytes(processes: Sequence[psutil.Process]) -> list[float]:
    """Of memory that is theirs alone: Ray's object store is everybody's."""
    return [process.memory_full_info().uss / 1e6 for process in processes]


def first_bytes(outcomes: Sequence[Outcome]) -> list[float]:
    return [one.first_byte - one.asked for one in outcomes if one.ok and one.first_byte]


def row(name: str, outcomes: Sequence[Outcome], memory: Sequence[float]) -> str:
    waits = first_bytes(outcomes) or [float("nan")]
    failed = sum(not one.ok for one in outcomes)
    return (
        f"| {name} | {len(outcomes)} | {failed} | {np.median(waits):.2f} | {max(waits):.2f} | "
        f"{', '.join(f'{size:.0f}' for size in memory)} |"
    )


async def listen(
    session: aiohttp.ClientSession, endpoint: Endpoint, texts: Iterator[str], count: int
) -> list[Outcome]:
    return [await ask(session, endpoint, text) for text in itertools.islice(texts, count)]


async def run(options: argparse.Namespace) -> int:
    texts = digits(np.random.default_rng(0))
    processes = serving_processes(urlsplit(options.url).port or 80)
    async with open_session(options.api_key, 120.0) as session:
        voice = options.voice or await first_id(
            session, f"{options.url}/v1/audio/voices", "voices", "--voice"
        )
        endpoint = Endpoint(options.url, "sheen", voice, "pcm", "audio")
        headers = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
        start = {"type": "start", "model": "sheen", "voice": voice}
        flood = Flood(options.url, headers, start)
        await listen(session, endpoint, texts, options.listens)  # warm-up
        before = await listen(session, endpoint, texts, options.listens)
        memory = megabytes(processes)
        began = time.monotonic()
        parts = [asyncio.create_task(flood.trickle()) for _ in range(options.trickling)]
        parts.append(
            asyncio.create_task(flood.shouts(session, options.messages, options.message_bytes))
        )
        parts += [asyncio.create_task(flood.ask_and_leave(session)) for _ in range(options.tables)]
        during: list[Outcome] = []
        while not all(part.done() for part in parts):
            during += await listen(session, endpoint, texts, 1)
        await asyncio.gather(*parts)
        took = time.monotonic() - began
        most = megabytes(processes)
        await asyncio.sleep(SETTLE_S)
        after = await listen(session, endpoint, texts, options.listens)
        left = megabytes(processes)
    print("| | requests | failed | first byte, median, s | longest | proxy, replicas, MB |")
    print("|---|---|---|---|---|---|")
    print(row("before", before, memory))
    print(row(f"during, {took:.0f} s", during, most))
    print(row("after", after, left))
    print(f"\n{json.dumps(flood.ended, indent=2)}")
    grown = sum(left) - sum(memory)
    slower = np.median(first_bytes(during) or [np.inf]) / np.median(first_bytes(before))
    print(f"\nFirst byte {slower:.2f} times as before; {grown:+.0f} MB.")
    ended = flood.ended.get("trickling bodies", Counter())
    return 0 if slower <= 2 and grown <= 50 and not ended["never ended"] else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("SHEEN_API_KEY", ""))
    parser.add_argument("--voice", help="default: the server's first")
    parser.add_argument("--listens", type=int, default=10, help="requests before and after")
    parser.add_argument("--trickling", type=int, default=300, help="bodies")
    parser.add_argument("--messages", type=int, default=60, help="messages, one after another")
    parser.add_argument("--message-bytes", type=int, default=15_000_000)
    parser.add_argument("--tables", type=int, default=6, help="tables of numbers")
    return asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
