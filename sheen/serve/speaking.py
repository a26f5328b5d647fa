"""Speaking: pieces of text -> one stream of samples, in order, each piece made ahead of its turn.

Owns the way of one request through the engine: the first piece waits its turn like any request, the
next one is submitted as soon as the one before it is heard, and where they meet is no click or gap.
Knows nothing about HTTP or audio formats.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from sheen.core.ending import Finished, Samples
from sheen.core.engine import Engine
from sheen.core.joining import Joiner, pause_after, wordless
from sheen.core.request_queue import Ticket
from sheen.core.sampling import Sampling
from sheen.core.voice import Voice
from sheen.serve.accounting import Entry
from sheen.serve.pieces import Pieces


class SpeechFailed(RuntimeError):
    """The engine gave up on a piece."""


@dataclass(frozen=True)
class Manner:
    """How a request wants to be spoken."""

    speaker: str | None
    sampling: Sampling
    piece_seconds: float
    """Longest audio of a piece."""


class Piece:
    """One piece at the engine: an asynchronous queue of its samples, and its ending."""

    def __init__(
        self, text: str, engine: Engine, voice: Voice, manner: Manner, before: "Piece | None"
    ) -> None:
        """Raises RequestError, EngineBusy, and RuntimeError when the engine has ended."""
        self.text = text
        self._items: asyncio.Queue[Samples | Finished] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(item: Samples | Finished) -> None:
            loop.call_soon_threadsafe(self._items.put_nowait, item)

        self.request = voice.request(
            text, manner.speaker, manner.sampling, manner.piece_seconds, engine.positions
        )
        follows = None if before is None else before.ticket
        self.ticket: Ticket = engine.submit(self.request, sink, follows)

    async def next(self) -> Samples | Finished:
        return await self._items.get()


class Speech:
    """One request being spoken; its figures go into `entry`. Iterate `samples` once."""

    def __init__(
        self, engine: Engine, voice: Voice, manner: Manner, pieces: Pieces, entry: Entry
    ) -> None:
        self._engine, self._voice, self._manner = engine, voice, manner
        self._pieces = pieces
        self._entry = entry
        self._joiner = Joiner(voice.codec.sample_rate)
        self._tickets: set[Ticket] = set()
        self._coming: asyncio.Task[Piece | None] | None = None
        self._over = False

    async def samples(self) -> AsyncIterator[Samples]:
        """The stream, which is silence for a text without a word. Raises RequestError, EngineBusy
        and SpeechFailed, the first two before any sample."""
        piece = await self._open(None)
        if piece is None:
            yield wordless(self._voice.codec.sample_rate)
        while piece is not None:
            self._joiner.begin(pause_after(piece.text), self._pieces.last)
            while not isinstance(item := await piece.next(), Finished):
                if self._coming is None:
                    self._coming = asyncio.create_task(self._open(piece))
                if len(samples := self._joiner.push(item)):
                    yield samples
            self._close(piece, item)
            if len(samples := self._joiner.end()):
                yield samples
            piece = await (self._coming or self._open(piece))
            self._coming = None
        self._over = True

    async def _open(self, before: Piece | None) -> Piece | None:
        """Submit the next piece when there is one."""
        text = await self._pieces.next()
        if text is None:
            return None
        piece = Piece(text, self._engine, self._voice, self._manner, before)
        self._tickets.add(piece.ticket)
        self._entry.pieces += 1
        self._entry.input_tokens += len(piece.request.prompt)
        return piece

    def _close(self, piece: Piece, ending: Finished) -> None:
        self._tickets.discard(piece.ticket)
        entry, layout = self._entry, self._voice.model.layout
        entry.output_tokens += ending.frames * layout.tokens_per_frame
        if entry.queue_s is None:
            entry.queue_s = piece.ticket.waited_s
        if ending.reason == "error":
            entry.ending = "error"
            raise SpeechFailed(f"synthesis failed: {ending.error}")
        if entry.ending != "length":
            entry.ending = ending.reason

    def cancel(self) -> None:
        """Give back what it holds, now. Nothing happens after the end."""
        for ticket in self._tickets:
            ticket.cancel()
        if self._coming is not None and not self._coming.cancel() and not self._coming.cancelled():
            self._coming.exception()  # it has ended: if it failed, nobody waits to hear of it
        if not self._over and self._entry.pieces and self._entry.ending != "error":
            self._entry.ending = "cancelled"
