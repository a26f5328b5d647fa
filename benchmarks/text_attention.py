"""Where a voice looks in its text while it speaks: are its errors lost places, or lost sounds?

Speaks prompts with the sampling and the seeds of an evaluation, then runs texts and codes through
the model once more, with its attention shown. Prints, of the head that follows the text best, how
it moves through the text, and with `--asr` which kinds of errors the ASR model finds:

    python benchmarks/text_attention.py --asr WHISPER_BASE    # four minutes of one core
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import jiwer
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Request
from sheen.engine.voice import Voice, load_voice
from sheen.rng import step_seed
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.wer import normalize_english, normalize_words

ENGLISH = Path(__file__).parents[1] / "examples" / "english"
MAX_SECONDS = 15.0
SLOTS = 16
NEAR = 3
"""Tokens: closer than this many and one, two places in a text count as the same."""

Attention = NDArray[np.float32]


@dataclass
class Utterance:
    text: str
    spoken: str
    """Its words, as a transcript is compared with them."""
    sounds: str
    """The same in the model's input form."""
    request: Request
    ids: list[int] = field(default_factory=list)
    """Its codes' tokens."""


def plan(voice: Voice, name: str | None, prompts: Path) -> list[Utterance]:
    """ValueError for a line that would be more than one chunk."""
    longest = voice.max_chunk_chars(MAX_SECONDS, name)
    plans = []
    for number, line in enumerate(filter(None, prompts.read_text("utf-8").splitlines())):
        words = voice.pipeline.words(line)
        sounds = voice.pipeline.model_input(words)
        if len(sounds) > longest:
            raise ValueError(f"{prompts}: expected at most {longest} characters, as spoken: {line}")
        sampling = voice.sampling(step_seed(0, number))
        request = voice.request(sounds, name, sampling, MAX_SECONDS)
        plans.append(Utterance(line, voice.pipeline.expected_transcript(words), sounds, request))
    return plans


def speak(voice: Voice, utterances: Sequence[Utterance]) -> None:
    """Set the `ids` of each."""
    layout = voice.model.layout
    generator = TokenGenerator(voice.model, SLOTS, voice.max_seq_len(MAX_SECONDS))
    waiting, running = list(reversed(utterances)), dict[int, Utterance]()
    while waiting or running:
        for slot in set(range(SLOTS)) - set(running):
            if waiting:
                one = running[slot] = waiting.pop()
                most, least = one.request.max_frames, one.request.min_frames
                generator.start(
                    slot,
                    one.request.prompt,
                    one.request.sampling,
                    most * layout.tokens_per_frame,
                    least * layout.tokens_per_frame,
                )
        step = generator.step()
        assert step is not None
        for error in step.failed.values():
            raise error
        for slot, token in zip(step.slots, step.read(), strict=True):
            one = running[slot]
            if token != layout.end_id:
                one.ids.append(token)
            length = one.request.max_frames * layout.tokens_per_frame
            if token == layout.end_id or len(one.ids) == length:
                generator.stop(slot)
                del running[slot]


@torch.inference_mode()
def text_attention(lm: PreTrainedModel, voice: Voice, one: Utterance) -> Attention:
    """How much each code's position looks at each token of the text `[heads, codes, text]`."""
    prompt = list(one.request.prompt)
    after = len(voice.template.after)
    text = len(voice.template.encode(one.sounds))
    shown = lm.base_model(torch.tensor([prompt + one.ids]), output_attentions=True).attentions
    asking = torch.cat([layer[0] for layer in shown])[:, len(prompt) - 1 : -1]
    return asking[..., len(prompt) - after - text : len(prompt) - after].numpy()


def forward_path(attention: Attention) -> NDArray[np.int64]:
    """Of attention `[codes, text]` the likeliest path that never goes back, a token per code."""
    best = np.log(attention / attention.sum(1, keepdims=True) + 1e-4)
    for before, here in pairwise(best):
        here += np.maximum.accumulate(before)
    path = [int(best[-1].argmax())]
    for row in best[-2::-1]:
        path.append(int(row[: path[-1] + 1].argmax()))
    return np.array(path[::-1])


def near_path(attention: Attention) -> float:
    """The attention within NEAR tokens of `forward_path`, summed."""
    away = np.abs(np.arange(attention.shape[1]) - forward_path(attention)[:, None])
    return float(attention[away <= NEAR].sum())


def words_of(voice: Voice, sounds: str) -> NDArray[np.int64]:
    """The number of the word that each token of a text is of; -1 for a gap."""
    encoded = voice.tokenizer(sounds, add_special_tokens=False, return_offsets_mapping=True)
    return np.array(
        [
            sounds[:first].count(" ") if sounds[first:last].strip() else -1
            for first, last in encoded["offset_mapping"]
        ]
    )


def attention_lines(voice: Voice, model: Path, utterances: Sequence[Utterance]) -> list[str]:
    lm = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    shown = [text_attention(lm, voice, one) for one in utterances]
    codes = sum(each.shape[1] for each in shown)
    near = np.array([[near_path(head) for head in each] for each in shown]).sum(0)
    best = int(near.argmax())
    layer, head = divmod(best, lm.config.num_attention_heads)
    on_text = sum(float(each[best].sum()) for each in shown)
    # The share near a path if it looked at all of the text evenly.
    even = sum(each.shape[1] * min(1.0, (2 * NEAR + 1) / each.shape[2]) for each in shown)
    back = moves = words = reached = 0
    missed: list[str] = []
    for one, each in zip(utterances, shown, strict=True):
        of_word = words_of(voice, one.sounds)
        looked = set(of_word[each[best].argmax(1)].tolist())
        named = one.sounds.split()
        words += len(named)
        missed += [word for number, word in enumerate(named) if number not in looked]
        reached += len(named) - 1 in looked
        whole = each[best].reshape(-1, voice.model.layout.tokens_per_frame, each.shape[2])
        steps = np.diff(whole.mean(1).argmax(1))
        moves += len(steps)
        back += int((steps < -NEAR).sum())
    return [
        f"{len(shown)} utterances, {words} words, {codes} codes; head {head} of layer {layer}",
        f"attention on the text {on_text / codes:.1%}, of which within {NEAR} tokens of a path "
        f"that never goes back {near[best] / on_text:.1%} (even attention: {even / codes:.1%})",
        f"frames whose peak goes back by more than {NEAR} tokens: {back} of {moves}",
        f"last word looked at: {reached}; words at which no code looks: {len(missed)} {missed}",
    ]


def error_lines(voice: Voice, asr: str, utterances: Sequence[Utterance]) -> list[str]:
    transcriber = open_transcriber(asr)
    layout, rate = voice.model.layout, voice.codec.sample_rate
    found = []
    for one in utterances:
        codes = layout.deinterleave(layout.from_ids(np.array(one.ids)))
        seed = one.request.sampling.seed
        samples = voice.codec.decode([level[None] for level in codes], [seed])[0].numpy()
        heard = transcriber.transcribe([samples], rate)[0]
        spoken, transcript = (
            normalize_words(normalize_english(text)) for text in (one.spoken, heard)
        )
        found.append(jiwer.process_words(spoken, transcript))
    words = [each.hits + each.substitutions + each.deletions for each in found]
    lines = [f"errors by {transcriber.name}:"]
    for name, first, last in (("up to 7", 0, 7), ("8 and 9", 8, 9), ("10 and more", 10, 10**9)):
        some = [each for each, n in zip(found, words, strict=True) if first <= n <= last]
        lines.append(kinds(f"utterances of {name} words", some))
    return [*lines, kinds("all", found)]


def kinds(name: str, found: Sequence[jiwer.WordOutput]) -> str:
    wrong = [
        sum(getattr(each, kind) for each in found)
        for kind in ("substitutions", "deletions", "insertions")
    ]
    words = sum(wrong[:2]) + sum(each.hits for each in found)
    text = "{} substitutions, {} deletions, {} insertions".format(*wrong)
    return f"  {name} ({len(found)}): {text} in {words} words, {sum(wrong) / max(1, words):.1%}"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument(
        "--model", type=Path, default=ENGLISH / "voice", help="(default: %(default)s)"
    )
    flags.add_argument("--prompts", type=Path, default=ENGLISH / "everyday.txt", help="a text file")
    flags.add_argument("--asr", help="for the kinds of errors; as sheen evaluate's")
    args = flags.parse_args()
    torch.set_num_threads(1)
    voice = load_voice(str(args.model))
    utterances = plan(voice, next(iter(voice.info.voices), None), args.prompts)
    speak(voice, utterances)
    print("\n".join(attention_lines(voice, args.model, utterances)), flush=True)
    if args.asr:
        print("\n".join(error_lines(voice, args.asr, utterances)))


if __name__ == "__main__":
    main()
