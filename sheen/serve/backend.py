"""A replica's checkpoint and engine, and the processes and threads that work with them.

Owns their life cycle (load, warm up, drain, close), and the way from a request's settings to an
admitted utterance. Refuses requests beyond admission; settings that the model cannot follow are
refused by `sheen.serve.capabilities`. Knows nothing about HTTP but the errors of a response.
"""

import logging
import math
import queue
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from sheen.audio.samples import Samples
from sheen.codec.worker import CodecProcess
from sheen.engine.audio.streaming import DEFAULT_RAMP
from sheen.engine.chunks import ChunkStream, Normalize
from sheen.engine.engine import Engine
from sheen.engine.longform import Speech, inline
from sheen.engine.reference import LONGEST_S
from sheen.engine.types import Finished, Sampling, SynthesisParams
from sheen.engine.voice import Voice, load_voice
from sheen.runs import cluster
from sheen.runs.device import worker_device
from sheen.serve.access.admission import Admission
from sheen.serve.capabilities import UNNAMED_VOICE, Capabilities, check_language
from sheen.serve.config import ServeArgs
from sheen.serve.errors import APIError
from sheen.serve.normalizers import NormalizerProcesses
from sheen.serve.rendering import Renderer, Utterance
from sheen.serve.request_log import RequestRecord
from sheen.serve.schema.requests import SpeechSettings
from sheen.serve.voices.references import NamedReference, References
from sheen.serve.word_times import Aligner, WordTimes
from sheen.text.delivery import Budget, DeliveryStream

logger = logging.getLogger(__name__)

CPU_RAMP = 2, 2, 4, 8, 12
"""DEFAULT_RAMP for a CPU, where one frame has been played before two more are generated and
decoded: for a single listener, audio is missing for 2 ms instead of 90 (docs/benchmarks.md)."""
REPLACED_S = 15
"""Approximate time in which Serve notices a stopped engine and starts another replica, seconds."""
DESCRIBED_VOICE = "described"
"""What the log has for a voice that a request describes in words."""
RENDERERS = 2
"""Threads that encode compressed audio, which encoders do without Python's lock."""
SLOTS_PER_NORMALIZER = 64
"""Slots for each process that normalizes text: a sentence is some 6 s of audio, and takes up to
0.1 s to normalize (decision 0020)."""


class Backend:
    """One checkpoint on one device. The constructor loads and warms up: call it where no event loop
    waits. `codec_process`: on a CPU, audio is decoded in a process of its own."""

    def __init__(self, args: ServeArgs, location: str, *, codec_process: bool = True) -> None:
        torch.set_num_threads(args.torch_threads)
        device = worker_device()
        on_cpu = device.type == "cpu"
        self.voice: Voice = load_voice(
            location, device, args.dtype, form=args.form, codec=args.codec, info=args.info
        )
        if args.takes_references and not (args.reference_form or self.voice.info.reference):
            raise ValueError(
                f"args.model {args.model}: this checkpoint was not trained to follow a reference. "
                "Train one with --reference-share, try it all the same with args.reference_form, "
                "or leave out args.voices_folder, ref_audio and ref_audio_hosts"
            )
        self._args = args
        self.capabilities = Capabilities(self.voice, args)
        self._codec_process = None
        if on_cpu and codec_process:
            self._codec_process = CodecProcess(self.voice.codec)
        self.engine = Engine(
            self.voice.model,
            self._codec_process or self.voice.codec,
            slots=args.slots,
            max_seq_len=self.voice.max_seq_len(
                args.max_seconds, LONGEST_S if args.takes_references else 0.0
            ),
            cache_bytes=None if args.kv_cache_gb is None else int(args.kv_cache_gb * 1e9),
            typical_seq_len=self.voice.typical_seq_len(args.max_seconds),
            # Admission is the bound: a long text's next chunk takes a slot from those it let in.
            max_queue=args.slots + args.max_queue,
            ramp=CPU_RAMP if on_cpu else DEFAULT_RAMP,
            look_ahead=args.look_ahead,
            trim_silence=args.trim_silence,
            warm_up=True,
        )
        self.admission = Admission(args.slots + args.max_queue, args.slots)
        self.open_sockets, self.max_sockets = 0, args.sockets
        """Number of open WebSockets, and its limit."""
        self._played_until = 0.0
        self._trimmed = True
        self._renderers = ThreadPoolExecutor(RENDERERS, "sheen-renderer")
        self._normalizers: NormalizerProcesses | None = None
        if self.voice.info.text_normalization is not None:
            processes = math.ceil(args.slots / SLOTS_PER_NORMALIZER)
            self._normalizers = NormalizerProcesses(self.voice.pipeline, processes)
        self._aligner = None
        if args.aligner is not None:
            self._aligner = Aligner(args.aligner, self.voice.language)
        taken = {*self.capabilities.names, UNNAMED_VOICE}
        self.references = References(self.voice, args, taken, self._reader, self._aligner)
        self._warm_up()
        logger.info(
            "serving %s on %s in %s, voices %s",
            location,
            device,
            self.voice.dtype,
            self.capabilities.voices,
        )

    def _warm_up(self) -> None:
        """Speak in all slots before reporting ready: the first step of a shape is much slower. On a
        GPU the engine computes every other shape before that."""
        names = self.voice.info.voices
        request = self.voice.request(
            "one", names[0] if names else None, Sampling(), 1.0, self.engine.max_seq_len
        )
        endings: queue.SimpleQueue[Finished] = queue.SimpleQueue()

        def sink(item: Samples | Finished) -> None:
            if isinstance(item, Finished):
                endings.put(item)

        for _ in range(self._args.slots):
            self.engine.submit(request, sink)
        for ending in (endings.get() for _ in range(self._args.slots)):
            if ending.reason == "error":
                raise RuntimeError(f"the warm-up failed: {ending.error}")

    @property
    def sample_rate(self) -> int:
        """Sample rate of all audio that is sent, Hz."""
        return self.voice.codec.sample_rate

    async def reference(self, settings: SpeechSettings) -> NamedReference | None:
        """The reference recording for a request's voice; None for one of the model's voices, and
        for an unknown name. Raises APIError."""
        text = (settings.ref_text or "").strip()
        if settings.ref_audio is not None:
            return await self.references.of_audio(settings.ref_audio, text)
        name = settings.voice_name
        if name is not None and name not in self.capabilities.names:
            if (found := await self.references.of_name(name, text)) is not None:
                return found
            if text:
                self.capabilities.speaker(name)  # an unknown name is the fault to tell
        if text:
            raise APIError(
                400,
                "ref_text: without ref_audio or an uploaded voice there is no recording of it",
                param="ref_text",
                code="no_recording",
            )
        return None

    def begin(
        self,
        settings: SpeechSettings,
        record: RequestRecord,
        reference: NamedReference | None = None,
        *,
        whole: bool = False,
        admitted: bool = False,
        budget: Budget | None = None,
    ) -> Utterance:
        """Admit a request; `record` holds its place until it is closed. `reference`: the result of
        the method `reference` for it. `whole`: its bytes are sent together, see `Renderer`.
        `admitted`: the request is part of one that has a place; `budget`: is shared by its parts.

        Raises APIError: 400 for settings that the model cannot follow, 429 and 503 when it is not
        admitted.
        """
        self.check_alive()
        able = self.capabilities
        name = able.voices[0] if settings.voice_name is None else settings.voice_name
        speaker, spoken = None, None
        if reference is None:
            speaker = able.speaker(name)
            # Never the words of a client, which may describe a voice.
            record.voice = name if name in able.names else DESCRIBED_VOICE
        else:
            spoken, record.voice = reference.reference, reference.name
        check_language(settings.language, self.voice.language)
        aligner = self._checked_aligner() if settings.word_timestamps else None
        ignored = able.ignored(settings, cloned=reference is not None)
        delivery = able.delivery(settings)
        record.audio_format = settings.response_format
        self._trimmed = False
        request = settings.model_dump_json(exclude={"ref_audio"}), hash(settings.ref_audio)
        if not admitted:
            record.cleanup.enter_context(self.admission.enter(request))
        record.cleanup.callback(self._note, record)
        record.ignored = ignored
        seed = settings.seed
        if seed is None or seed < 0:
            seed = secrets.randbits(63)
        sampling = self.voice.sampling(seed, **settings.sampling)
        others = able.names.values() if settings.ssml else ()
        seconds = self._args.max_seconds
        limit = self.voice.longest_chunk(seconds, speaker, spoken, others)
        reader, words = self._reader(), None
        if aligner is not None:
            words = WordTimes(aligner, self.sample_rate, self.voice.pipeline.expected_transcript)
            record.cleanup.callback(words.close)
            reader = words.reading(reader)
        chunks = ChunkStream(reader, limit)
        how = able.instruction(settings)
        params = SynthesisParams(speaker, sampling, seconds, reference=spoken, instruction=how)
        speech = Speech(self.engine, self.voice, params, chunks, record)
        record.cleanup.callback(speech.close)
        renderer = Renderer(
            settings.response_format,
            settings.speed,
            self.sample_rate,
            self._renderers,
            whole=whole,
        )
        record.cleanup.callback(renderer.close)
        return Utterance(
            chunks,
            DeliveryStream(self.voice.language, delivery, budget),
            speech,
            renderer,
            lambda: self.admission.promise(request),
            able.scope(settings, speaker) if settings.ssml else None,
            words,
        )

    def _checked_aligner(self) -> Aligner:
        if self._aligner is None:
            raise APIError(
                400,
                "word_timestamps: this server has no aligner; `args.aligner` names one",
                param="word_timestamps",
                code="word_timestamps_not_available",
            )
        return self._aligner

    def _note(self, record: RequestRecord) -> None:
        if record.finish_reason != "cancelled":
            self._played_until = max(self._played_until, record.playback.runs_out or 0.0)

    @property
    def unplayed_s(self) -> float:
        """Seconds until clients have played the audio already sent, part of which may still be in
        Ray's proxy."""
        return max(0.0, self._played_until - time.monotonic())

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """The model's own defaults for fields of a request, where it has some."""
        return self.voice.info.sampling_settings

    def _reader(self) -> Normalize:
        """A function that normalizes the sentences of one request."""
        if self._normalizers is not None:
            return self._normalizers.reader()

        return inline(self.voice.model_input)

    def metrics(self) -> dict[str, float]:
        """The engine's metrics, and `texts_as_written`: parts of texts that were not normalized in
        time."""
        overdue = 0 if self._normalizers is None else self._normalizers.overdue
        return self.engine.metrics() | {"texts_as_written": overdue}

    def trim_memory(self) -> None:
        """Return memory that requests have freed to the system, once after the last of them has
        ended."""
        if not self._trimmed and not self.admission.inside:
            self._trimmed = True
            cluster.trim_memory()

    def check_alive(self) -> None:
        """Raise APIError, 503, when the engine has stopped."""
        if not self.alive():
            raise APIError(
                503,
                "the engine has stopped; this replica is being replaced",
                retry_after_s=REPLACED_S,
            )

    def alive(self) -> bool:
        return self.engine.alive() and (self._normalizers is None or self._normalizers.alive())

    def close(self) -> None:
        """Finish the engine's requests, and stop the processes and threads beside it."""
        self.engine.close()
        if self._codec_process is not None:
            self._codec_process.close()
        if self._normalizers is not None:
            self._normalizers.close()
        self.references.close()
        self._renderers.shutdown()
        if self._aligner is not None:
            self._aligner.close()
