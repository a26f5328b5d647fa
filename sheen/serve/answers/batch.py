"""`POST /v1/audio/speech/batch`: many texts in one request, as in vLLM-Omni and SGLang.

Owns how many items are spoken at a time, and the result of each: an item that is invalid or fails
has an error in its result, and a record of its own in the log. A batch has one place among the
requests, which its items use one after another; further items take unused slots, so that a batch is
as fast as an idle replica allows, and delays nobody on a busy one.
"""

import asyncio
import base64
import json
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.types import Scope

from sheen.audio.encoders import MEDIA_TYPES
from sheen.serve.errors import APIError, unforeseen
from sheen.serve.rendering import finish_reason, rendered, usage
from sheen.serve.request_log import (
    CLIENT_LEFT,
    RequestRecord,
    close_record,
    open_record,
    record_of,
)
from sheen.serve.schema.answers import BatchResult
from sheen.serve.schema.requests import MAX_BATCH_CHARACTERS, BatchRequest, SpeechRequest
from sheen.text.delivery import Budget

if TYPE_CHECKING:  # not imported where the application is built
    from sheen.serve.backend import Backend
    from sheen.serve.voices.references import NamedReference

logger = logging.getLogger(__name__)

SPOKEN = 200


async def answer_batch(
    backend: "Backend", batch: BatchRequest, request: Request
) -> StreamingResponse:
    """The response, which sends results as they become ready, in the order of the items. Raises
    APIError when the batch is too long, its own voice is unknown, or it is not admitted."""
    record = record_of(request)
    if batch.characters > MAX_BATCH_CHARACTERS:
        raise APIError(
            400,
            f"items: {batch.characters} characters; the texts of a batch may have "
            f"{MAX_BATCH_CHARACTERS} together",
            param="items",
            code="too_long",
        )
    record.characters = batch.characters
    backend.check_alive()
    reference = await _shared_reference(backend, batch)
    # Its bytes: not every item can be written as JSON again, and one that cannot has its own error.
    record.cleanup.enter_context(backend.admission.enter(await request.body()))
    speaking = Batch(backend, batch, request.scope, reference)
    record.cleanup.callback(speaking.close)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_json(speaking), media_type="application/json", headers=headers)


async def _shared_reference(backend: "Backend", batch: BatchRequest) -> "NamedReference | None":
    """The reference for the batch's own voice, if that is one of a recording. It serves all items,
    also after a deletion. Raises APIError, also for an unknown voice."""
    if batch.ref_audio is None and batch.voice_name is None:
        return None
    reference = await backend.reference(batch)
    if reference is None and batch.voice_name is not None:
        backend.capabilities.speaker(batch.voice_name)
    return reference


async def _json(speaking: "Batch") -> AsyncIterator[str]:
    succeeded = total = 0
    yield f'{{"id": {json.dumps(f"speech-batch-{secrets.token_hex(8)}")}, "results": ['
    async for result in speaking.results():
        yield (", " if total else "") + result.model_dump_json(exclude_none=True)
        total += 1
        succeeded += result.status == "success"
    yield f'], "total": {total}, "succeeded": {succeeded}, "failed": {total - succeeded}}}'


class Batch:
    """One admitted batch. Iterate `results` once; always `close` it."""

    def __init__(
        self,
        backend: "Backend",
        batch: BatchRequest,
        scope: Scope,
        reference: "NamedReference | None" = None,
    ) -> None:
        """`reference`: of the items without a voice of their own."""
        self._backend, self._batch, self._scope = backend, batch, scope
        self._reference, self._budget = reference, Budget()
        self._waiting = deque(enumerate(batch.items))
        self._running: set[asyncio.Task[BatchResult]] = set()
        self._placed: asyncio.Task[BatchResult] | None = None
        """The item that uses the batch's place."""

    async def results(self) -> AsyncIterator[BatchResult]:
        """The result of every item, in order."""
        ready: dict[int, BatchResult] = {}
        due = 0
        while self._waiting or self._running:
            while self._waiting and (self._place_is_free or self._backend.admission.idle):
                self._begin(*self._waiting.popleft())
            done, self._running = await asyncio.wait(
                self._running, return_when=asyncio.FIRST_COMPLETED
            )
            ready |= {result.index: result for result in (task.result() for task in done)}
            while due in ready:
                yield ready.pop(due)
                due += 1

    def close(self) -> None:
        """Stop what is being spoken."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()

    @property
    def _place_is_free(self) -> bool:
        return self._placed is None or self._placed.done()

    def _begin(self, index: int, item: dict[str, Any]) -> None:
        """Start speaking an item, for which there is a place."""
        record = open_record(self._scope)
        record.status = CLIENT_LEFT  # until it is answered
        placed = self._place_is_free
        if not placed:
            record.cleanup.enter_context(self._backend.admission.enter())
        task = asyncio.create_task(self._speak(index, item, record))
        task.add_done_callback(lambda _: close_record(record))
        self._running.add(task)
        if placed:
            self._placed = task

    async def _speak(self, index: int, item: dict[str, Any], record: RequestRecord) -> BatchResult:
        try:
            request = _request(self._batch, item)
            record.characters = len(request.input)
            reference = self._reference
            if reference is None or self._batch.has_own_voice(item):
                reference = await self._backend.reference(request)
            utterance = self._backend.begin(
                request, record, reference, whole=True, admitted=True, budget=self._budget
            )
            await utterance.feed(request.input)
            utterance.close()
            record.ignored += tuple(sorted(utterance.text.ignored))
            data = b"".join([part async for part in rendered(utterance, record)])
            words = None if utterance.words is None else await utterance.words.all()
        except APIError as error:
            return _failed(index, error, record)
        except Exception as error:
            logger.exception("an item of a batch failed")
            return _failed(index, unforeseen(error), record)
        record.status = SPOKEN
        return BatchResult(
            index=index,
            status="success",
            audio_data=base64.b64encode(data).decode(),
            media_type=MEDIA_TYPES[request.response_format],
            finish_reason=finish_reason(record),
            word_timestamps=words,
            usage=usage(record),
            ignored=list(record.ignored) or None,
        )


def _request(batch: BatchRequest, item: dict[str, Any]) -> SpeechRequest:
    try:
        return batch.request(item)
    except ValidationError as error:
        problem = error.errors()[0]
        param = str(problem["loc"][0])
        raise APIError(
            400, f"{param}: {problem['msg']}", param=param, code=problem["type"]
        ) from error


def _failed(index: int, error: APIError, record: RequestRecord) -> BatchResult:
    record.status = error.status
    record.blame(error)
    return BatchResult(index=index, status="error", error=str(error))
