"""The Ray Serve application: a checkpoint behind `POST /v1/audio/speech`.

Owns the replica and its routes. HTTP, engine and codec live in one replica, because each hop
between deployments would add to the time to first audio; scale by replicas. Behind the routes:
`sheen.serve.backend`, which a replica alone imports: Serve imports this module in another process
first, only to read the configuration, and a replica starts when that is done.
"""

import logging
import time
from typing import Any

from fastapi import Request, WebSocket
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from ray import serve

from sheen.audio.encoders import MEDIA_TYPES
from sheen.serve.access.keys import KEYS_VARIABLE, KeyFile, absolute_location, read_keys
from sheen.serve.access.limits import RESERVE
from sheen.serve.access.middleware import (
    FrontMiddleware,
    Gate,
    GateMiddleware,
    set_gate,
    set_origins,
)
from sheen.serve.answers.batch import answer_batch
from sheen.serve.answers.responses import EVENT_STREAM, SPEECH_HEADERS, answer
from sheen.serve.config import (
    BATCH,
    MAX_BODIES,
    ServeArgs,
    checkpoint_location,
    with_absolute_paths,
)
from sheen.serve.errors import APIError, documented, install_error_handlers
from sheen.serve.proxy.install import Proxies
from sheen.serve.replica import log_like_serve, stay_on_loopback
from sheen.serve.request_log import (
    Metrics,
    RequestLogMiddleware,
    listen,
    record_of,
)
from sheen.serve.schema.answers import (
    AudioModels,
    BatchAnswer,
    CreatedVoice,
    DeletedVoice,
    Model,
    ModelId,
    Models,
    NamedVoice,
    NoSuchVoice,
    Voices,
)
from sheen.serve.schema.requests import BatchRequest, SpeechRequest
from sheen.serve.voices.routes import FORM, delete, list_voices, upload
from sheen.serve.web.pages import SpeechAPI, page_response, reference_response
from sheen.serve.websocket.conversation import converse
from sheen.text.lexicon import read_entries

logger = logging.getLogger(__name__)

LONGEST_TEXT_S = 360
"""Time to speak MAX_INPUT_CHARACTERS of English, and a minute."""
HEALTH_CHECK_S = 2.0
"""Interval of health checks: longest time until a dead replica is noticed, and greatest age of the
engine's metrics."""

DESCRIPTION = """
Speech from your own voice model, through OpenAI's API.

The WebSocket `/v1/audio/speech/stream` takes text as a language model writes it: send
`{"type": "start"}` with the fields of the POST but `input`, then `{"type": "text", "text": "…"}` as
often as you like, then `{"type": "end"}`; binary frames are audio, `speech.audio.done` ends them.
`{"type": "cancel"}` stops what is being spoken. It takes vLLM-Omni's messages too:
`session.config`, `input.text`, `input.done`, `session.close`.

A text may hold pauses: `[pause:1.5s]` or `[pause:300ms]` is exactly that much silence.
"""


app = SpeechAPI(title="Sheen", description=DESCRIPTION, redirect_slashes=False)
install_error_handlers(app)
app.add_middleware(GateMiddleware)
app.add_middleware(FrontMiddleware)
app.add_middleware(RequestLogMiddleware)  # the last one added is the first to see a request


@serve.deployment
@serve.ingress(app)
class SpeechService:
    """One replica: one checkpoint on one device. `digests`: hashes of keys that are in no file."""

    def __init__(self, args: ServeArgs, location: str, digests: frozenset[str]) -> None:
        log_like_serve()
        stay_on_loopback()
        self._args = args
        self._started = int(time.time())
        from sheen.serve.backend import Backend  # see the module's docstring

        self._backend = Backend(args, location)
        self._metrics = Metrics()
        self._keys = None
        if args.auth == "keys" and args.keys_file is not None:
            self._keys = KeyFile(args.keys_file)
        elif args.auth == "keys":
            logger.info(
                "%d keys of %s, as it was when this was deployed: a change needs a restart of Ray",
                len(digests),
                KEYS_VARIABLE,
            )
        follow = self._keys.digests if self._keys else lambda: digests
        set_gate(Gate(None if args.auth == "none" else follow, args))
        set_origins(tuple(args.cors_origins))
        listen(self._metrics.ended)
        application = serve.get_replica_context().app_name
        self._proxies = Proxies(application, args, self._metrics.refused_by_proxy)

    def check_health(self) -> None:
        """Called by Serve: a replica whose engine died or hangs is replaced."""
        self._metrics.engine(self._backend.metrics())
        self._backend.trim_memory()
        if not self._backend.alive():
            raise RuntimeError("the engine has stopped, or has been at one step for a minute")

    def state(self) -> dict[str, float]:
        """The engine's numbers, and the admitted requests as `inside`; for callers with a handle of
        the deployment."""
        return self._backend.engine.metrics() | {"inside": self._backend.admission.inside}

    def drain(self) -> tuple[int, float]:
        """Stop admitting requests. Returns the number of requests still held, and the seconds until
        the audio already sent has been played."""
        self._backend.admission.draining = True
        return self._backend.admission.inside, self._backend.unplayed_s

    def __del__(self) -> None:
        """Called by Serve when the replica is stopped, after its last request."""
        if backend := getattr(self, "_backend", None):
            backend.close()
        if keys := getattr(self, "_keys", None):
            keys.close()
        if proxies := getattr(self, "_proxies", None):
            proxies.close()

    # Health

    @app.get("/", include_in_schema=False)
    async def page(self) -> HTMLResponse:
        return page_response()

    @app.get("/openapi.json", include_in_schema=False)
    async def document(self, request: Request) -> JSONResponse:
        return JSONResponse(self._document(request))

    @app.get("/docs", include_in_schema=False)
    async def reference(self, request: Request) -> HTMLResponse:
        return reference_response(self._document(request))

    def _document(self, request: Request) -> dict[str, Any]:
        document: dict[str, Any] = request.app.document(
            self._backend.capabilities.listed_voices,
            request.scope.get("root_path", ""),
            self._backend.sampling_defaults,
        )
        return document

    @app.get("/health", response_class=PlainTextResponse, responses=documented(503))
    async def health(self) -> str:
        """OK while the engine runs."""
        self._backend.check_alive()
        return "OK"

    @app.get("/ready", response_class=PlainTextResponse, responses=documented(503))
    async def ready(self) -> str:
        """OK when a request would be admitted now: the model is warm, and there is a place."""
        await self.health()
        try:
            self._backend.admission.check()
        except APIError as error:
            raise APIError(503, str(error), retry_after_s=error.retry_after_s) from error
        return "OK"

    # Models and voices

    @app.get("/v1/models", responses=documented(401))
    async def models(self) -> Models:
        return Models(data=[self._model()])

    @app.get("/v1/models/{model_id:path}", responses=documented(401, 404))
    async def model(self, model_id: str) -> Model:
        if model_id != self._args.model_id:
            raise APIError(
                404,
                f"no model {model_id[:100]!r}; this server has {self._args.model_id!r}",
                param="model",
                code="model_not_found",
            )
        return self._model()

    @app.get("/v1/audio/models", responses=documented(401))
    async def audio_models(self) -> AudioModels:
        return AudioModels(models=[ModelId(id=self._args.model_id)])

    @app.get("/v1/audio/voices", responses=documented(401))
    async def voices(self) -> Voices:
        """The model's voices, and those that were uploaded."""
        return await list_voices(self._backend.references, self._backend.capabilities.voices)

    @app.post(
        "/v1/audio/voices",
        responses=documented(400, 401, 403, 408, 413, 415, 429),
        openapi_extra=FORM,
    )
    async def upload_voice(self, request: Request) -> CreatedVoice:
        """Store a recording as a voice that requests can name."""
        return await upload(self._backend.references, request)

    @app.delete(
        "/v1/audio/voices/{name}",
        response_model=DeletedVoice,
        responses={404: {"model": NoSuchVoice}, **documented(401)},
    )
    async def delete_voice(self, name: str) -> Response:
        """Delete an uploaded voice and its recording. Requests that already use it are finished."""
        return await delete(self._backend.references, name)

    def _model(self) -> Model:
        return Model(
            id=self._args.model_id,
            created=self._started,
            voices=self._voices(),
            tags=list(self._backend.voice.pipeline.tags),
            instructions=self._backend.voice.info.follows_instructions,
        )

    def _voices(self) -> list[NamedVoice]:
        return [NamedVoice(id=name, name=name) for name in self._backend.capabilities.voices]

    # Speech

    @app.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={
            200: {
                "description": "the audio, or its events",
                "content": {media: {} for media in [*MEDIA_TYPES.values(), EVENT_STREAM]},
                "headers": SPEECH_HEADERS,
            },
            **documented(400, 401, 408, 413, 415, 429, 500, 503),
        },
    )
    async def speech(self, body: SpeechRequest, request: Request) -> Response:
        """The text as speech, streamed as it is generated."""
        record = record_of(request)
        record.characters = len(body.input)
        return await answer(self._backend, body, record, self._args.first_audio_timeout_s)

    @app.post(
        BATCH,
        response_model=None,
        responses={
            200: {"model": BatchAnswer, "description": "a result for each item, in their order"},
            **documented(400, 401, 408, 413, 415, 429, 503),
        },
    )
    async def speech_batch(self, body: BatchRequest, request: Request) -> Response:
        """Up to 32 texts in one request, each a whole file in the answer. An item that is invalid
        or fails has an error in its result."""
        return await answer_batch(self._backend, body, request)

    @app.websocket("/v1/audio/speech/stream")
    async def speech_stream(self, socket: WebSocket) -> None:
        await converse(socket, self._backend, self._args)


def build(args: ServeArgs) -> serve.Application:
    """The application that `import_path` in serve_config.yaml names.

    Ray decides by the annotation of `args` whether it becomes a ServeArgs: keep it a class, and
    this file free of postponed annotations.
    """
    location = checkpoint_location(args.model)
    args = with_absolute_paths(args, location)
    admitted = args.slots + args.max_queue
    service = SpeechService.options(  # type: ignore[attr-defined]
        # The replica itself refuses, in OpenAI's format: Serve must pass on all that it may hold,
        # and what it answers at once, or /health would wait for a place.
        max_ongoing_requests=admitted + args.sockets + MAX_BODIES + RESERVE,
        health_check_period_s=HEALTH_CHECK_S,
        # A replica that is replaced, for example by another checkpoint, finishes its requests: as
        # many rounds as it may hold, each as long as its audio, and one longest text.
        graceful_shutdown_timeout_s=(
            LONGEST_TEXT_S + args.max_seconds * (1 + admitted / args.slots)
        ),
    )
    if args.lexicon is not None:
        lexicon = absolute_location(args.lexicon)
        read_entries(lexicon)  # an invalid file fails here, at once
        args = args.model_copy(update={"lexicon": lexicon})
    digests: frozenset[str] = frozenset()
    if args.auth == "keys":
        # Read here, where `serve run` or `serve deploy` reads the config, so that an invalid file
        # fails at once. A replica follows the file itself: Ray calls this only for a new config.
        digests = read_keys(args.keys_file)
        if args.keys_file is not None:
            where, digests = absolute_location(args.keys_file), frozenset()
            args = args.model_copy(update={"keys_file": where})
    if args.voices_folder is not None:
        args = args.model_copy(update={"voices_folder": absolute_location(args.voices_folder)})
    application: serve.Application = service.bind(args, location, digests)
    return application
