"""The Ray Serve application: a checkpoint behind `POST /v1/audio/speech`.

Owns the replica: it loads the checkpoint, runs the engine in its own thread, and turns what the
engine emits into bytes on the wire. HTTP, engine and codec live in one replica, because each hop
between deployments would add to the time to first audio; scale by replicas.
"""

import asyncio
import logging
import queue
import secrets
import time
from collections.abc import AsyncIterator

import torch
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from ray import serve
from ray.util.metrics import Gauge

from sheen.core.audio import to_pcm16, wav_header
from sheen.core.codec_process import CodecProcess
from sheen.core.ending import Finished, Samples
from sheen.core.engine import Engine, Ticket
from sheen.core.requests import EngineBusy
from sheen.core.sampling import Sampling
from sheen.core.voice import RequestError, load_voice
from sheen.serve.api import MEDIA_TYPES, APIError, SpeechRequest, install_error_handlers
from sheen.serve.config import ServeArgs, checkpoint_location

logger = logging.getLogger(__name__)

UNNAMED_VOICE = "default"
"""What a model that was trained without speakers calls its one voice."""

app = FastAPI(title="Sheen", description="Speech from your own voice model.")
install_error_handlers(app)


def _log_like_serve() -> None:
    """Let Sheen's own log lines (batch fill, endings) go where Serve's go.

    It stands before the class because Serve pickles the class as it is decorated, with the names
    that exist by then.
    """
    ours = logging.getLogger("sheen")
    ours.setLevel(logging.INFO)
    for handler in logging.getLogger("ray.serve").handlers:
        ours.addHandler(handler)


@serve.deployment
@serve.ingress(app)
class SpeechService:
    """One replica: one checkpoint on one device."""

    def __init__(self, args: ServeArgs, location: str) -> None:
        _log_like_serve()
        torch.set_num_threads(args.torch_threads)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._args = args
        self._started = int(time.time())
        self._voice = load_voice(location, device)
        self._codec_process = None
        if device == "cpu" and args.audio_process:
            self._codec_process = CodecProcess(self._voice.codec, args.audio_threads)
        self._engine = Engine(
            self._voice.model,
            self._codec_process or self._voice.codec,
            slots=args.slots,
            positions=args.positions or self._voice.longest(args.default_max_seconds),
            max_queue=args.max_queue,
            noise=args.noise,
            look_ahead=args.look_ahead,
            trim_silence=args.trim_silence,
            audio_threads=args.audio_threads,
        )
        self._gauges = {
            name: Gauge(f"sheen_{name}", "See sheen.core.counters.")
            for name in self._engine.metrics()
        }
        self._warm_up()
        logger.info("serving %s on %s, voices %s", location, device, self._voices())

    def _warm_up(self) -> None:
        """Speak at all slots before reporting ready: a first pass of a shape is much slower."""
        names = self._voice.info.voices
        positions = self._engine.positions
        speaker = names[0] if names else None
        request = self._voice.request("one", speaker, Sampling(), 1.0, positions)
        endings: queue.SimpleQueue[Finished] = queue.SimpleQueue()

        def sink(item: Samples | Finished) -> None:
            if isinstance(item, Finished):
                endings.put(item)

        for _ in range(self._args.slots):
            self._engine.submit(request, sink)
        for ending in (endings.get() for _ in range(self._args.slots)):
            if ending.reason == "error":
                raise RuntimeError(f"the warm-up failed: {ending.error}")

    def check_health(self) -> None:
        """Called by Serve: a replica whose engine died or hangs is replaced."""
        for name, value in self._engine.metrics().items():
            self._gauges[name].set(value)
        if not self._engine.alive():
            raise RuntimeError("the engine has stopped, or has been at one step for a minute")

    def __del__(self) -> None:
        """Called by Serve when the replica is stopped; by then it has no requests."""
        if engine := getattr(self, "_engine", None):
            engine.close()
        if codec := getattr(self, "_codec_process", None):
            codec.close()

    @app.get("/health", response_class=PlainTextResponse)
    async def health(self) -> str:
        if not self._engine.alive():
            raise APIError(503, "the engine has stopped", retry_after_s=1)
        return "OK"

    @app.get("/v1/models")
    async def models(self) -> dict[str, object]:
        model = {
            "id": self._args.model_id,
            "object": "model",
            "created": self._started,
            "owned_by": "sheen",
        }
        return {"object": "list", "data": [model]}

    @app.get("/v1/audio/voices")
    async def voices(self) -> dict[str, object]:
        return {"voices": [{"id": name, "name": name} for name in self._voices()]}

    @app.post(
        "/v1/audio/speech",
        response_class=StreamingResponse,
        responses={200: {"content": {media: {} for media in MEDIA_TYPES.values()}}},
    )
    async def speech(self, body: SpeechRequest) -> StreamingResponse:
        seed = secrets.randbits(63) if body.seed is None else body.seed
        speaker: str | None = body.voice_name
        if not self._voice.info.voices and speaker == UNNAMED_VOICE:
            speaker = None
        try:
            request = self._voice.request(
                body.input,
                speaker,
                Sampling(body.temperature, body.top_k, body.top_p, seed, body.repetition_penalty),
                self._args.default_max_seconds,
                self._engine.positions,
            )
        except RequestError as error:
            raise APIError(400, str(error), param=error.field) from error
        items: asyncio.Queue[Samples | Finished] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        try:
            ticket = self._engine.submit(
                request, lambda item: loop.call_soon_threadsafe(items.put_nowait, item)
            )
        except EngineBusy as busy:
            raise APIError(429, str(busy), retry_after_s=1) from busy
        try:
            # Headers wait for the first samples: until then a failure still has a status code.
            first = await items.get()
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        if isinstance(first, Finished) and first.reason == "error":
            raise APIError(500, f"synthesis failed: {first.error}")
        sample_rate = self._voice.codec.sample_rate
        header = wav_header(sample_rate) if body.response_format == "wav" else b""
        return StreamingResponse(
            self._body(header, first, items, ticket),
            media_type=MEDIA_TYPES[body.response_format],
            headers={"x-sample-rate": str(sample_rate)},
        )

    async def _body(
        self,
        header: bytes,
        item: Samples | Finished,
        items: "asyncio.Queue[Samples | Finished]",
        ticket: Ticket,
    ) -> AsyncIterator[bytes]:
        """The audio's bytes. A client that leaves closes this generator, which cancels."""
        started = time.monotonic()
        finished: Finished | None = None
        pending = header
        try:
            while not isinstance(item, Finished):
                yield pending + to_pcm16(item).tobytes()
                pending = b""
                item = await items.get()
            finished = item
            if pending:
                yield pending
            if finished.reason == "error":
                # The status is long sent: only a cut stream can tell the client.
                raise RuntimeError(f"synthesis failed: {finished.error}")
        finally:
            ticket.cancel()
            logger.info(
                "speech ended: %s, %d frames, %.2f s after the first audio",
                finished.reason if finished else "client left",
                finished.frames if finished else -1,
                time.monotonic() - started,
            )

    def _voices(self) -> list[str]:
        return self._voice.info.voices or [UNNAMED_VOICE]


def build(args: ServeArgs) -> serve.Application:
    """What `import_path` in serve_config.yaml names.

    Ray decides by this annotation whether `args` becomes a ServeArgs: keep it a class, and this
    file free of postponed annotations.
    """
    # Serve must let through more requests than the replica takes: it is the replica that answers
    # 429, in OpenAI's shape.
    admitted = args.slots + args.max_queue
    service = SpeechService.options(  # type: ignore[attr-defined]
        max_ongoing_requests=2 * admitted,
        # A replica that is replaced, by another checkpoint say, first ends what it has begun: as
        # many rounds of requests as it may hold, each as long as its audio.
        graceful_shutdown_timeout_s=60 + args.default_max_seconds * (1 + admitted / args.slots),
    )
    application: serve.Application = service.bind(args, checkpoint_location(args.model))
    return application
