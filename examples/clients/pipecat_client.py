"""Pipecat's OpenAI TTS service in a pipeline.

python examples/clients/pipecat_client.py [-o speech.wav]

The service refuses every voice that is not one of OpenAI's 13; the server has them as aliases.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

from client_run import Heard, NotSpoken, failed, parser

RATE = 24_000
"""Hz: the service's and a pipeline's default."""


async def speak(service: Any, text: str) -> Heard:
    """Through a pipeline of the service and a sink."""
    from pipecat.frames.frames import EndFrame, Frame, TTSAudioRawFrame, TTSSpeakFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.worker import PipelineWorker
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
    from pipecat.workers.runner import WorkerRunner

    heard = Heard("pcm in a pipeline")
    errors: list[str] = []

    class Sink(FrameProcessor):
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            await super().process_frame(frame, direction)
            if isinstance(frame, TTSAudioRawFrame):
                heard.add(frame.audio)
            await self.push_frame(frame, direction)

    worker = PipelineWorker(Pipeline([service, Sink()]))

    @worker.event_handler("on_pipeline_error")
    async def on_error(_: Any, frame: Any) -> None:
        errors.append(frame.error)

    await worker.queue_frames([TTSSpeakFrame(text), EndFrame()])
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()
    if errors:
        raise NotSpoken(errors[0])
    return heard


def main(argv: Sequence[str] | None = None) -> int:
    args = parser(__doc__.splitlines()[0], voice="alloy").parse_args(argv)
    try:
        from loguru import logger

        logger.remove()  # pipecat greets on import

        from pipecat.services.openai.tts import OpenAITTSService

        async def one() -> Heard:
            settings = OpenAITTSService.Settings(model=args.model, voice=args.voice)
            service = OpenAITTSService(
                base_url=f"{args.url}/v1", api_key=args.api_key, settings=settings
            )
            return await speak(service, args.text)

        heard = asyncio.run(one())
        heard.report(RATE)
        heard.save_wav(args.output, RATE)
    except (ImportError, OSError, NotSpoken) as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
