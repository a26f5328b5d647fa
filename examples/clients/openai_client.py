"""The official `openai` library: whole and streamed, sync and async, and as events.

python examples/clients/openai_client.py [--all] [-o speech.mp3]
"""

import asyncio
import base64
import sys
from collections.abc import Sequence
from typing import Any

from client_run import Heard, NotSpoken, failed, parser

FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")
PCM_RATE = 24_000
"""Hz: what the library's own helper for playing takes pcm for."""


def speak(client: Any, request: dict[str, Any]) -> list[Heard]:
    """Three ways of the sync client."""
    speech = client.audio.speech
    whole = Heard(f"{request['response_format']}, whole")
    whole.add(speech.create(**request).content)

    streamed = Heard(f"{request['response_format']}, streamed")
    with speech.with_streaming_response.create(**request) as response:
        for chunk in response.iter_bytes():
            streamed.add(chunk)
    return [whole, streamed, listen_to_events(client, request)]


def listen_to_events(client: Any, request: dict[str, Any]) -> Heard:
    """`stream_format: sse`, by the library's own reader of events: it raises what they tell."""
    import openai

    heard = Heard(f"{request['response_format']}, events")
    kind = ""
    # `create` has no type for these events; `post` is the library's way to what it does not wrap.
    events = client.post(
        "/audio/speech",
        body={**request, "stream_format": "sse"},
        cast_to=object,
        stream=True,
        stream_cls=openai.Stream[object],
    )
    for event in events:
        kind = event["type"]
        if kind == "speech.audio.delta":
            heard.add(base64.b64decode(event["audio"]))
    if kind != "speech.audio.done":
        raise NotSpoken(f"the last event is {kind!r}, expected speech.audio.done")
    return heard


async def speak_async(client: Any, request: dict[str, Any]) -> list[Heard]:
    """Two ways of the async client."""
    async with client:
        speech = client.audio.speech
        whole = Heard(f"{request['response_format']}, async, whole")
        whole.add((await speech.create(**request)).content)

        streamed = Heard(f"{request['response_format']}, async, streamed")
        async with speech.with_streaming_response.create(**request) as response:
            async for chunk in response.iter_bytes():
                streamed.add(chunk)
    return [whole, streamed]


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--format", choices=FORMATS, default="mp3")
    flags.add_argument("--all", action="store_true", help="all six formats, one after another")
    args = flags.parse_args(argv)
    try:
        import openai

        where = {"base_url": f"{args.url}/v1", "api_key": args.api_key}
        for audio_format in FORMATS if args.all else (args.format,):
            request = {
                "model": args.model,
                "voice": args.voice,
                "input": args.text,
                "response_format": audio_format,
            }
            with openai.OpenAI(**where) as client:
                heard = speak(client, request)
            heard += asyncio.run(speak_async(openai.AsyncOpenAI(**where), request))
            for one in heard:
                one.report(PCM_RATE if audio_format == "pcm" else None)
            if args.output is not None:
                args.output.write_bytes(heard[-1].data)
    except (ImportError, OSError, NotSpoken) as error:
        return failed(error)
    except openai.OpenAIError as error:  # a name that exists where the import did not fail
        return failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
