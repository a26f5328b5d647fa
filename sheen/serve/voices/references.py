"""References of requests: `ref_audio`, `ref_text` and names of uploaded voices, for the engine.

Owns what a request may name, in which thread its recording is read and encoded, and the cache of
codes by a recording's bytes, so that the same one is encoded once. A voice that is deleted while it
is in use serves until those requests end. The folder of uploads: `folder`; the requirements of a
recording: `sheen.engine.reference`.
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
from sheen.serve.schema.requests import MAX_REFERENCE_TEXT
from sheen.serve.voices.folder import NAME_RULE, StoredVoice, VoiceFolder, folded, is_name, voice_id
from sheen.serve.voices.remote import decode_data_url, fetch, wrong
from sheen.serve.word_times import Aligner
from sheen.text.segmentation import split_sentences

logger = logging.getLogger(__name__)

Frames = NDArray[np.int16]
Result = TypeVar("Result")
KEPT = 256
"""Recordings whose codes are cached, some kilobytes each."""
MAX_WAITING = 16
"""Recordings that may wait to be encoded; a second each, on a CPU."""
RETRY_S = 5


class NamedReference(NamedTuple):
    reference: Reference
    name: str
    """The voice's name in the log: an id, never a name that a client chose."""


class References:
    """References for the requests of one replica. `taken`: names of the model's own voices."""

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

    async def of_audio(self, audio: str, text: str) -> NamedReference:
        """The reference for a request with `ref_audio`; `text` may be empty for an uploaded voice.
        Raises APIError."""
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
        return NamedReference(await self._from_recording(data, text), "ref_audio")

    async def of_name(self, name: str, text: str = "") -> NamedReference | None:
        """The reference for an uploaded voice, by its name or id; None if there is none. `text`
        replaces the stored one. Raises APIError."""
        if (voice := await self.uploaded(name)) is None:
            return None
        return NamedReference(await self._of_voice(voice, text), voice.id)

    async def uploaded(self, name: str) -> StoredVoice | None:
        """An uploaded voice by its name or id; None if there is none."""
        folder = self.folder
        return None if folder is None else await self._file_work(lambda: folder.get(name))

    async def _of_voice(self, voice: StoredVoice, text: str) -> Reference:
        if voice.codec_sha256 == self._voice.info.codec.sha256:
            frames = self._voice.model.layout.interleave(voice.arrays())
        else:
            folder = self.folder
            assert folder is not None, "the voice came from the folder"
            data = await self._file_work(lambda: folder.recording(voice))
            frames = await self._encoded(data)
        return await self._reference(frames, text or voice.ref_text)

    async def _from_recording(self, data: bytes, text: str) -> Reference:
        if not text.strip():
            raise APIError(
                400,
                "ref_text: send the transcript of the recording; without it the model cannot "
                "interpret its sounds",
                param="ref_text",
                code="missing",
            )
        return await self._reference(await self._encoded(data), text)

    async def _reference(self, frames: Frames, text: str) -> Reference:
        if len(text) > MAX_REFERENCE_TEXT:
            raise APIError(
                400, f"ref_text: more than {MAX_REFERENCE_TEXT} characters", param="ref_text"
            )
        normalize = self._reader()
        sentences = split_sentences(text, self._voice.language)
        spoken = [await normalize(sentence) for sentence in sentences]
        words = " ".join(filter(None, spoken))
        try:
            return self._voice.reference(frames, words, self._args.reference_form)
        except RequestError as error:
            raise refusal(error) from error

    async def _encoded(self, data: bytes) -> Frames:
        """A recording's codes `[frames, tokens_per_frame]`; concurrent requests share one
        encoding."""
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
            # Shielded: a cancelled request must not cancel the encoding for others.
            return await asyncio.shield(asyncio.wrap_future(coming))
        except RequestError as error:
            raise refusal(error) from error

    def _encode(self, data: bytes) -> Frames:
        return self._voice.encode(self._read(data))

    def _read(self, data: bytes) -> Samples:
        return read_recording(data, self._voice.codec, self._args.max_reference_seconds)

    async def _transcript(self, data: bytes) -> str:
        """The transcript of a recording; empty without an aligner."""
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
        """Store a recording as a voice, replacing an uploaded one of the same name. APIError for a
        recording that cannot serve as a reference, and for invalid fields."""
        folder = self.folder
        assert folder is not None, "the route checks this"
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
                "consent: send an id of yours for who allowed this voice to be used; it is stored",
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
            await self._from_recording(data, ref_text)
        except APIError as error:
            if error.param == "ref_audio":
                error.param = "audio_sample"
            raise
        frames = await self._encoded(data)
        others = await self._file_work(folder.all)
        if len(others) >= self._args.max_voices and all(other.name != name for other in others):
            raise APIError(
                400,
                f"{len(others)} voices are stored, the limit of this server: delete one first",
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
        """Delete an uploaded voice. Returns it, None if there is none."""
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
