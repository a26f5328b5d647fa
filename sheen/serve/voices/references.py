"""References of requests: `ref_audio`, `ref_text` and names of uploaded voices, for the engine.

Owns what a request may name, in which threads its recording is fetched, read and encoded, and the
transcript: where the server has an aligner, it supplies a missing one, and one that does not fit is
refused. A voice that is deleted while it is in use serves until those requests end. Sharing of a
recording's codes: `shared_work`; the folder of uploads: `folder`; the requirements of a recording:
`sheen.engine.reference`.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import Samples
from sheen.engine.chunks import Normalize
from sheen.engine.reference import read_recording
from sheen.engine.types import Reference, RequestError
from sheen.engine.voice import Voice
from sheen.serve.config import ServeArgs
from sheen.serve.errors import APIError
from sheen.serve.schema.requests import MAX_REFERENCE_TEXT
from sheen.serve.voices.folder import (
    NAME_RULE,
    FolderFull,
    StoredVoice,
    VoiceFolder,
    folded,
    is_name,
    voice_id,
)
from sheen.serve.voices.reference_fields import (
    bad_reference,
    check_transcript,
    decode_data_url,
    fetch,
)
from sheen.serve.voices.shared_work import MAX_WAITING, SharedWork, too_many
from sheen.serve.word_times import Aligner
from sheen.text.segmentation import split_sentences

logger = logging.getLogger(__name__)

Frames = NDArray[np.int16]
Result = TypeVar("Result")
FETCHERS = 4
"""Threads that wait for other hosts, and for nothing else: a slow one delays only its own."""
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
        args: ServeArgs,
        taken: set[str],
        reader: Callable[[], Normalize],
        aligner: Aligner | None = None,
    ) -> None:
        """`aligner`: transcribes recordings."""
        self._voice, self._args, self._reader = voice, args, reader
        self._aligner = aligner
        self._taken = {folded(name) for name in taken}
        self.folder = VoiceFolder(args.voices_folder) if args.voices_folder else None
        self._encoder = ThreadPoolExecutor(1, "sheen-reference")
        self._files = ThreadPoolExecutor(4, "sheen-voices")
        self._fetchers = ThreadPoolExecutor(FETCHERS, "sheen-fetcher")
        self._fetching = 0
        self._codes: SharedWork[Frames] = SharedWork("encoded")
        self._transcripts: SharedWork[str] = SharedWork("transcribed")

    def close(self) -> None:
        for threads in (self._encoder, self._files, self._fetchers):
            threads.shutdown(cancel_futures=True)

    # Requests

    async def of_audio(self, audio: str, text: str) -> NamedReference:
        """The reference for a request with `ref_audio`; `text` may be empty for an uploaded voice.
        Raises APIError."""
        if audio[:5].lower() == "data:":
            if not self._args.ref_audio:
                raise bad_reference(
                    "this server takes no recordings with a request; the operator can allow them "
                    "(args.ref_audio)",
                    "references_off",
                )
            data = decode_data_url(audio, self._args.max_recording_bytes)
        elif "://" in audio[:20]:
            data = await self._fetched(audio)
        else:
            voice = await self.uploaded(audio)
            if voice is None:
                raise bad_reference(
                    f"no uploaded voice {audio[:100]!r}: give the id or name of one, or a data URL",
                    "voice_not_found",
                )
            return NamedReference(await self._of_voice(voice, text), voice.id)
        return NamedReference((await self._from_recording(data, text))[0], "ref_audio")

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

    async def _from_recording(self, data: bytes, text: str) -> tuple[Reference, str]:
        """The reference, and its transcript: `text`, or the aligner's if that is empty."""
        aligner = self._aligner
        if aligner is not None:
            frames, transcribed = await asyncio.gather(
                self._encoded(data), self._transcript(data, aligner)
            )
            if text.strip():
                check_transcript(text, transcribed, self._voice.language)
            text = text if text.strip() else transcribed
        if not text.strip():
            raise APIError(
                400,
                "ref_text: send the transcript of the recording; without it the model cannot "
                "interpret its sounds",
                param="ref_text",
                code="missing",
            )
        if aligner is None:
            frames = await self._encoded(data)
        return await self._reference(frames, text), text

    async def _reference(self, frames: Frames, text: str) -> Reference:
        if len(text) > MAX_REFERENCE_TEXT:
            raise _too_long("ref_text")
        normalize = self._reader()
        sentences = split_sentences(text, self._voice.language)
        spoken = [await normalize(sentence) for sentence in sentences]
        words = " ".join(filter(None, spoken))
        try:
            return self._voice.reference(frames, words, self._args.reference_form)
        except RequestError as error:
            raise refusal(error) from error

    async def _encoded(self, data: bytes) -> Frames:
        """A recording's codes `[frames, tokens_per_frame]`."""
        try:
            return await self._codes.result(data, lambda: self._encoder.submit(self._encode, data))
        except RequestError as error:
            raise refusal(error) from error

    def _encode(self, data: bytes) -> Frames:
        return self._voice.encode(self._read(data))

    def _read(self, data: bytes) -> Samples:
        return read_recording(data, self._voice.codec)

    async def _transcript(self, data: bytes, aligner: Aligner) -> str:
        """The aligner's transcript of a recording."""
        rate = self._voice.codec.sample_rate
        try:
            return await self._transcripts.result(
                data, lambda: aligner.transcribe(lambda: self._read(data), rate)
            )
        except RequestError as error:
            raise refusal(error) from error

    async def _fetched(self, url: str) -> bytes:
        """A file from an allowed host."""
        if self._fetching >= MAX_WAITING:
            raise too_many(self._fetching, "fetched")
        hosts, most = self._args.ref_audio_hosts, self._args.max_recording_bytes
        self._fetching += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._fetchers, fetch, url, hosts, most
            )
        finally:
            self._fetching -= 1

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
        texts = {"consent": consent, "ref_text": ref_text, "speaker_description": description}
        for field, text in texts.items():
            if len(text or "") > MAX_REFERENCE_TEXT:
                raise _too_long(field)
        if len(data) > self._args.max_recording_bytes:
            raise APIError(
                413,
                f"audio_sample: more than {self._args.max_recording_bytes} bytes; give 3 to 10 s "
                "of speech",
                param="audio_sample",
                code="body_too_large",
            )
        try:
            _, ref_text = await self._from_recording(data, ref_text)
        except APIError as error:
            if error.param == "ref_audio":
                error.param = "audio_sample"
            raise
        frames = await self._encoded(data)
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
        most = self._args.max_voices
        try:
            await self._file_work(lambda: folder.put(voice, data, most))
        except FolderFull as error:
            raise APIError(
                400,
                f"{most} voices are stored, the limit of this server: delete one first",
                code="too_many_voices",
            ) from error
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


def _too_long(field: str) -> APIError:
    """For a text of a voice, which is kept with it."""
    return APIError(
        400, f"{field}: more than {MAX_REFERENCE_TEXT} characters", param=field, code="too_long"
    )


def refusal(error: RequestError) -> APIError:
    return APIError(400, f"{error.field}: {error}", param=error.field, code="invalid_reference")
