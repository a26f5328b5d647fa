"""LiveKit's OpenAI TTS class, outside a room.

python examples/clients/livekit_client.py [-o speech.wav]
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from client_run import Heard, NotSpoken, failed, parser

RATE = 24_000
"""Hz: what the class asks of its decoder."""
WAYS: tuple[dict[str, str], ...] = (
    {},
    {"response_format": "wav"},
    {"response_format": "pcm"},
    {"model": "tts-1"},
)
"""Its default is mp3 in events; for a model named tts-1 it asks for the bytes themselves."""


async def speak(tts: Any, text: str, what: str) -> Heard:
    heard = Heard(what)
    async with tts.synthesize(text) as stream:
        async for event in stream:
            frame = event.frame
            if (frame.sample_rate, frame.num_channels) != (RATE, 1):
                raise NotSpoken(f"{frame.num_channels} channels at {frame.sample_rate} Hz came")
            heard.add(frame.data.tobytes())
    await tts.aclose()
    return heard


def main(argv: Sequence[str] | None = None) -> int:
    args = parser(__doc__.splitlines()[0]).parse_args(argv)
    try:
        from livekit.agents import APIError
        from livekit.plugins import openai

        base = {
            "base_url": f"{args.url}/v1",
            "api_key": args.api_key,
            "model": args.model,
            "voice": args.voice,
        }

        async def one(way: dict[str, str]) -> Heard:
            what = ", ".join(way.values()) or "mp3 in events"
            return await speak(openai.TTS(**{**base, **way}), args.text, what)

        for way in WAYS:
            heard = asyncio.run(one(way))
            heard.report(RATE)
        heard.save_wav(args.output, RATE)
    except (ImportError, OSError, NotSpoken) as error:
        return failed(error)
    except APIError as error:  # a name that exists where the import did not fail
        return failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
