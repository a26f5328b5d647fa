"""References of requests: from `ref_audio`, `ref_text` and the names of uploaded voices to what the
engine speaks in.

Owns what a request may name, in which thread its recording is read and encoded, and what is kept of
it: a recording's codes by its bytes, so that the same one is encoded once. What is deleted while it
is spoken is spoken to its end. Where uploads are is `folder`'s; what a recording may be is
`sheen.engine.reference`'s.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import Samples
from sheen.engine.chunks import Normalize
from sheen.engine.reference import read_recording
from sheen.engine.types import Reference, RequestError
from sheen.engine.voice import Voice
from sheen.serve.config import ReferenceArgs
from sheen.serve.errors import APIError
from sheen.serve.voices.folder import NAME_RULE, StoredVoice, VoiceFolder, folded, is_name, voice_id
from sheen.serve.voices.remote import decode_data_url, fetch, wrong
from sheen.serve.word_times import Aligner
from sheen.text.segmentation import split_sentences

logger = logging.getLogger(__name__)

Frames = NDArray[np.int16]
Result = TypeVar("Result")
KEPT = 256
"""Recordings whose codes are kept, some kilobytes each."""
MAX_WAITING = 16
"""Recordings that wait to be encoded; a second each, on a CPU."""
RETRY_S = 5
MAX_TEXT = 1000
"""Characters of `ref_text`: what 30 s of fast speech have, twice."""


class NamedReference(NamedTuple):
    reference: Reference
    name: str
    """For a log: an id, never a name that somebody chose."""


class References:
    """Of one replica. `taken`: names that the model's own voices have."""

    def __init__(
        self,
        voice: Voice,
        args: ReferenceArgs,
        taken: set[str],
        reader: Callable[[], Normalize],
        aligner: Aligner | None = None,
    ) -> None:
        """`aligner`: transcribes uploads without `ref_text`."""
        self._voice, self._args, self._reader = voice, args, reader
        self._aligner = aligner
        self._taken = {folded(name) for name in taken}
        self.folder = VoiceFolder(args.voices_folder) if args.voices_folder else None
        self._encoder = ThreadPoolExecutor(1, "sheen-reference")
        self._files = ThreadPoolExecutor(4, "sheen-voices")
        self._codes: OrderedDict[bytes, Future[Frames]] = OrderedDict()

    def close(self) -> None:
        self._encoder.shutdown(cancel_futures=True)
        self._files.shutdown(cancel_futures=True)

    # Requests

    async def of_audio(self, audio: str, text: str | None) -> NamedReference:
        """Of a request with `ref_audio`. Raises APIError."""
        if audio[:5].lower() == "data:":
            if not self._args.ref_audio:
                raise wrong(
                    "this server takes no recordings with a request; the operator can allow them "
                    "(args.ref_audio)",
                    "references_off",
                )
            data = decode_data_url(audio, self._args.max_recording_bytes)
        elif "://" in audio[:20]:
            hosts, most = self._args.ref_audio_hosts, self._args.max_recording_bytes
            data = await self._file_work(lambda: fetch(audio, hosts, most))
        else:
            voice = await self.uploaded(audio)
            if voice is None:
                raise wrong(
                    f"no uploaded voice {audio[:100]!r}: give the id or name of one, or a data URL",
                    "voice_not_found",
                )
            return NamedReference(await self._of_voice(voice, text), voice.id)
        return NamedReference(await self._made(data, text or ""), "ref_audio")

    async def of_name(self, name: str) -> NamedReference | None:
        """Of an uploaded voice, by its name or id; None where there is none. Raises APIError."""
        voice = await self.uploaded(name)
        return None if voice is None else NamedReference(await self._of_voice(voice), voice.id)

    async def uploaded(self, name: str) -> StoredVoice | None:
        """An uploaded voice by its name or id."""
        folder = self.folder
        return None if folder is None else await self._file_work(lambda: folder.get(name))

    async def _of_voice(self, voice: StoredVoice, text: str | None = None) -> Reference:
        if voice.codec_sha256 == self._voice.info.codec.sha256:
            frames = self._voice.model.layout.interleave(voice.arrays())
        else:
            folder = self.folder
            assert folder is not None, "it came from there"
            data = await self._file_work(lambda: folder.recording(voice))
            frames = await self._encoded(data)
        return await self._reference(frames, text or voice.ref_text)

    async def _made(self, data: bytes, text: str) -> Reference:
        if not text.strip():
            raise APIError(
                400,
                "ref_text: say what is spoken in the recording; without it the model cannot tell "
                "its sounds",
                param="ref_text",
                code="missing",
            )
        return await self._reference(await self._encoded(data), text)

    async def _reference(self, frames: Frames, text: str) -> Reference:
        if len(text) > MAX_TEXT:
            raise APIError(400, f"ref_text: more than {MAX_TEXT} characters", param="ref_text")
        normalize = self._reader()
        sentences = split_sentences(text, self._voice.language)
        spoken = [await normalize(sentence) for sentence in sentences]
        words = " ".join(filter(None, spoken))
        try:
            return self._voice.reference(frames, words, self._args.reference_form)
        except RequestError as error:
            raise refusal(error) from error

    async def _encoded(self, data: bytes) -> Frames:
        """A recording's codes `[frames, tokens_per_frame]`; encoded once, however many wait."""
        digest = hashlib.sha256(data).digest()
        coming = self._codes.get(digest)
        if coming is None or (coming.done() and coming.exception()):
            waiting = sum(not future.done() for future in self._codes.values())
            if waiting >= MAX_WAITING:
                raise APIError(
                    429,
                    f"{waiting} recordings are being encoded",
                    code="rate_limit_exceeded",
                    retry_after_s=max(1, waiting // 2),
                )
            coming = self._codes[digest] = self._encoder.submit(self._encode, data)
        self._codes.move_to_end(digest)
        while len(self._codes) > KEPT:
            self._codes.popitem(last=False)
        try:
            # Shielded: who leaves does not take it from the others.
            return await asyncio.shield(asyncio.wrap_future(coming))
        except RequestError as error:
            raise refusal(error) from error

    def _encode(self, data: bytes) -> Frames:
        return self._voice.encode(self._read(data))

    def _read(self, data: bytes) -> Samples:
        return read_recording(data, self._voice.codec, self._args.max_reference_seconds)

    async def _transcript(self, data: bytes) -> str:
        """What is said in a recording; "" without an aligner."""
        if self._aligner is None:
            return ""
        try:
            samples = await self._file_work(lambda: self._read(data))
        except RequestError as error:
            raise refusal(error) from error
        return await self._aligner.transcribe(samples, self._voice.codec.sample_rate)

    # Uploads

    async def upload(
        self,
        name: str,
        data: bytes,
        media_type: str,
        consent: str,
        ref_text: str,
        description: str | None,
    ) -> StoredVoice:
        """Keep a recording as a voice, instead of an uploaded one of the same name. APIError for
        what no request could be spoken in."""
        folder = self.folder
        assert folder is not None, "the route asks first"
        if not is_name(name):
            raise APIError(400, f"name: {name[:100]!r}: {NAME_RULE}", param="name")
        name = folded(name)
        if name in self._taken:
            raise APIError(
                400,
                f"name: the model has a voice {name!r} of its own; choose another",
                param="name",
            )
        if not consent.strip():
            raise APIError(
                400,
                "consent: say by an id of yours who allowed this voice to be used; it is recorded",
                param="consent",
                code="missing",
            )
        if len(data) > self._args.max_recording_bytes:
            raise APIError(
                413,
                f"audio_sample: more than {self._args.max_recording_bytes} bytes; give 3 to 10 s "
                "of speech",
                param="audio_sample",
                code="body_too_large",
            )
        try:
            ref_text = ref_text if ref_text.strip() else await self._transcript(data)
            await self._made(data, ref_text)
        except APIError as error:
            if error.param == "ref_audio":
                error.param = "audio_sample"
            raise
        frames = await self._encoded(data)
        others = await self._file_work(folder.all)
        if len(others) >= self._args.max_voices and all(other.name != name for other in others):
            raise APIError(
                400,
                f"{len(others)} voices are kept, as many as are allowed: delete one first",
                code="too_many_voices",
            )
        levels = self._voice.model.layout.deinterleave(frames)
        voice = StoredVoice(
            id=voice_id(name),
            name=name,
            consent=consent,
            created_at=int(time.time()),
            mime_type=media_type,
            file_size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            ref_text=ref_text,
            speaker_description=description,
            codec_sha256=self._voice.info.codec.sha256,
            codes=[level.tolist() for level in levels],
        )
        await self._file_work(lambda: folder.put(voice, data))
        return voice

    async def voices(self) -> list[StoredVoice]:
        """Every uploaded voice."""
        return [] if self.folder is None else await self._file_work(self.folder.all)

    async def delete(self, name: str) -> StoredVoice | None:
        """The one that was deleted; None where there is none."""
        folder = self.folder
        return None if folder is None else await self._file_work(lambda: folder.delete(name))

    async def _file_work(self, work: Callable[[], Result]) -> Result:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._files, work)
        except OSError as error:
            logger.exception("args.voices_folder cannot be used")
            raise APIError(
                503,
                "the folder of uploaded voices cannot be read or written",
                code="voices_unavailable",
                retry_after_s=RETRY_S,
            ) from error


def refusal(error: RequestError) -> APIError:
    return APIError(400, f"{error.field}: {error}", param=error.field, code="invalid_reference")
