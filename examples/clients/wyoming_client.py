"""wyoming_openai, Home Assistant's way to speech servers, and a client of its protocol.

python examples/clients/wyoming_client.py [-o speech.wav]

Starts wyoming_openai beside itself. It finds the voices by requests without a key: where args.auth
is keys, name them with --voices.
"""

import asyncio
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from client_run import Heard, NotSpoken, failed, parser

START_S = 60.0
"""For wyoming_openai to import, ask the server and listen."""
TRY_AGAIN_S = 0.2
SILENCE_S = 60.0


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def connected(client: Any, bridge: asyncio.subprocess.Process) -> None:
    """Wait until wyoming_openai listens. NotSpoken when it ends before."""
    while bridge.returncode is None:
        try:
            await client.connect()
            return
        except ConnectionRefusedError:
            await asyncio.sleep(TRY_AGAIN_S)
    assert bridge.stderr is not None
    log = (await bridge.stderr.read()).decode().strip()
    raise NotSpoken(f"wyoming_openai ended: {log.splitlines()[-1] if log else 'without a word'}")


async def speak(client: Any, voice: str, text: str, streamed: bool) -> tuple[Heard, int]:
    """One sentence, as one message or as Home Assistant streams text; and its rate, Hz."""
    from wyoming.audio import AudioChunk, AudioStop
    from wyoming.error import Error
    from wyoming.tts import (
        Synthesize,
        SynthesizeChunk,
        SynthesizeStart,
        SynthesizeStop,
        SynthesizeStopped,
        SynthesizeVoice,
    )

    named = SynthesizeVoice(name=voice)
    heard, rate = Heard("text in pieces" if streamed else "one text"), 0
    messages = [Synthesize(text=text, voice=named)]
    if streamed:
        words = [SynthesizeChunk(text=f"{word} ") for word in text.split()]
        messages = [SynthesizeStart(voice=named), *words, SynthesizeStop()]
    for message in messages:
        await client.write_event(message.event())
    last = SynthesizeStopped if streamed else AudioStop
    while not last.is_type((event := await client.read_event() or closed()).type):
        if Error.is_type(event.type):
            raise NotSpoken(Error.from_event(event).text)
        if AudioChunk.is_type(event.type):
            chunk = AudioChunk.from_event(event)
            heard.add(chunk.audio)
            rate = chunk.rate
    return heard, rate


def closed() -> Any:
    raise NotSpoken("wyoming_openai closed the connection")


async def found_voices(client: Any) -> list[str]:
    """What Home Assistant would offer."""
    from wyoming.info import Describe, Info

    await client.write_event(Describe().event())
    info = Info.from_event(await client.read_event() or closed())
    return [voice.name for program in info.tts for voice in program.voices]


async def converse(args: Any) -> None:
    """Voices, then the sentence twice, on one connection."""
    from wyoming.client import AsyncTcpClient

    port = free_port()
    command = [sys.executable, "-m", "wyoming_openai", "--uri", f"tcp://127.0.0.1:{port}"]
    command += ["--tts-openai-url", f"{args.url}/v1", "--tts-openai-key", args.api_key]
    command += ["--tts-streaming-models", args.model, "--log-level", "ERROR"]
    command += ["--tts-voices", *args.voices] if args.voices else []
    bridge = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        client = AsyncTcpClient("127.0.0.1", port, read_timeout=SILENCE_S)
        async with asyncio.timeout(START_S):
            await connected(client, bridge)
        voices = await found_voices(client)
        print(f"voices: {', '.join(voices)}")
        if args.voice not in voices:
            raise NotSpoken(f"voice {args.voice!r} was not found")
        for streamed in (False, True):
            heard, rate = await speak(client, args.voice, args.text, streamed)
            heard.report(rate)
        heard.save_wav(args.output, rate)
        await client.disconnect()
    finally:
        if bridge.returncode is None:
            bridge.terminate()
        await bridge.wait()


def main(argv: Sequence[str] | None = None) -> int:
    flags = parser(__doc__.splitlines()[0])
    flags.add_argument("--voices", nargs="+", help="do not ask the server which voices it has")
    args = flags.parse_args(argv)
    try:
        asyncio.run(converse(args))
    except (ImportError, OSError, NotSpoken, TimeoutError) as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
