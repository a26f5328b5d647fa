"""The sides of the serving benchmark, each behind `submit(request, sink)` and `close()`.

All serve the same checkpoint with the same codec, and decode the audio. (a) transformers' generate,
one request at a time, its audio decoded as a whole. (b) transformers'
continuous batching, its audio decoded by Sheen's own stage. Sheen: the engine.
"""

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import ContinuousBatchingConfig

from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec
from sheen.codec.windows import WindowCodec
from sheen.codec.worker import CodecProcess
from sheen.engine.audio.decoder import AudioStage, Stream
from sheen.engine.audio.streaming import StreamingDecoder
from sheen.engine.engine import Engine
from sheen.engine.types import Finished, Request, Sampling, Sink
from sheen.engine.voice import Voice, load_voice
from sheen.lm.attention.packed import use_attention
from sheen.lm.model import SpeechLM
from sheen.lm.model_files import load_model


class Side(Protocol):
    def submit(self, request: Request, sink: Sink) -> object: ...

    def close(self) -> None: ...


class LegalRows(LogitsProcessor):
    """The slot grammar, as a user of `generate` would write it."""

    def __init__(self, layout: TokenLayout, prompt: int, min_tokens: int) -> None:
        self._layout, self._prompt, self._min_tokens = layout, prompt, min_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self._prompt
        slot = step % self._layout.tokens_per_frame
        legal = self._layout.legal(slot)
        first, end = legal[slot == 0 and step < self._min_tokens], legal[-1] + 1
        masked = torch.full_like(scores, float("-inf"))
        masked[:, first:end] = scores[:, first:end]
        return masked


def generate_alone(model: SpeechLM, request: Request) -> list[int]:
    """The audio tokens of one request by transformers' generate."""
    layout, sampling = model.layout, request.sampling
    use_attention(model.lm, "sdpa")
    prompt = torch.tensor([list(request.prompt)], device=model.head.device)
    torch.manual_seed(sampling.seed)
    rows = LegalRows(layout, prompt.shape[1], request.min_frames * layout.tokens_per_frame)
    with torch.inference_mode():
        ids = model.lm.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature or None,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_new_tokens=request.max_frames * layout.tokens_per_frame,
            eos_token_id=layout.end_id,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([rows]),
        )
    tokens: list[int] = ids[0, prompt.shape[1] :].tolist()
    return tokens[:-1] if tokens and tokens[-1] == layout.end_id else tokens


class OneByOne:
    """(a): a queue before `generate`."""

    def __init__(self, model: SpeechLM, codec: Codec) -> None:
        self._model, self._codec = model, codec
        self._queue: queue.Queue[tuple[Request, Sink] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> None:
        self._queue.put((request, sink))

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _loop(self) -> None:
        layout = self._model.layout
        while (item := self._queue.get()) is not None:
            request, sink = item
            tokens = generate_alone(self._model, request)
            frames = layout.from_ids(np.array(tokens, np.int64))
            levels = [level[None] for level in layout.deinterleave(frames)]
            sink(self._codec.decode(levels, [request.sampling.seed])[0].numpy())
            sink(Finished("length", len(frames)))


class TransformersBatching:
    """(b): its tokens go to the audio stage of Sheen as they come.

    Its logits processors cannot know the slot of the frame, so it samples from all rows, and a
    token stands for the code that its id modulo the codebook's size is: illegal tokens sound as
    any, and cost as much. `<audio_end>` cannot end a request here; all have a fixed length.
    """

    def __init__(
        self, model: SpeechLM, codec: WindowCodec, slots: int, positions: int, sampling: Sampling
    ) -> None:
        self._layout, self._codec = model.layout, codec
        use_attention(model.lm, "sdpa")
        config = GenerationConfig(
            do_sample=sampling.temperature > 0,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or 0,
            eos_token_id=-1,
            pad_token_id=0,
        )
        page = 64
        self._manager = model.lm.init_continuous_batching(
            config,
            ContinuousBatchingConfig(
                page_size=page,
                num_blocks=slots * (positions // page + 2),
                max_batch_tokens=512,
                max_requests_per_batch=slots,
                allow_block_sharing=False,
                auto_switch_to_flash=False,
            ),
        )
        self._stage = AudioStage(codec, lambda stream, ending: None)
        self._streams: dict[str, tuple[Stream, int]] = {}
        self._given: dict[str, int] = {}
        self._over = threading.Event()
        self._manager.start()
        self._thread = threading.Thread(target=self._relay, daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink) -> None:
        decoder = StreamingDecoder(self._codec, self._layout, request.sampling.seed)
        name = f"request-{len(self._given)}"
        tokens = request.max_frames * self._layout.tokens_per_frame
        self._streams[name], self._given[name] = (Stream(decoder, sink), tokens), 0
        self._manager.add_request(
            list(request.prompt), request_id=name, max_new_tokens=tokens, streaming=True
        )

    def close(self) -> None:
        self._over.set()
        self._manager.stop(block=True)
        self._thread.join()
        self._stage.close()

    def _relay(self) -> None:
        bases, size = self._layout.slot_bases, self._layout.codebook_size
        while not self._over.is_set():
            result = self._manager.get_result(timeout=0.1)
            if result is None:
                continue
            stream, whole = self._streams[result.request_id]
            given = self._given[result.request_id]
            news: list[tuple[Stream, int | Finished]] = []
            if result.error:
                news.append((stream, Finished("error", 0, result.error)))
            for step in range(given, min(len(result.generated_tokens), whole)):
                slot = step % self._layout.tokens_per_frame
                code = result.generated_tokens[step] % size
                news.append((stream, int(bases[slot]) + code))
            given = self._given[result.request_id] = max(given, len(result.generated_tokens))
            if given >= whole:
                news.append((stream, Finished("length", 0)))
            self._stage.feed(news)


@dataclass(frozen=True)
class Served:
    """What is served: by transformers its own way, by Sheen as its own service loads it.

    `beside` decodes in a process of its own, for the two sides that decode while they generate.
    """

    voice: Voice
    plain: SpeechLM
    beside: CodecProcess

    @staticmethod
    def load(folder: str) -> "Served":
        voice = load_voice(folder)
        plain, _ = load_model(Path(folder), voice.info.token_layout)
        plain.lm.eval().requires_grad_(False)
        return Served(voice, plain, CodecProcess(voice.codec))


def open_side(name: str, served: Served, slots: int, requests: Sequence[Request]) -> Side:
    model, codec, beside = served.plain, served.voice.codec, served.beside
    positions = max(request.seq_len(model.layout) for request in requests)
    if name == "a":
        return OneByOne(model, codec)
    if name == "b":
        return TransformersBatching(model, beside, slots, positions, requests[0].sampling)
    return Engine(
        served.voice.model, beside, slots=slots, max_seq_len=positions, max_queue=len(requests)
    )


SIDES = {
    "a": "(a) transformers generate, one by one",
    "b": "(b) transformers continuous batching",
    "sheen": "Sheen",
}
