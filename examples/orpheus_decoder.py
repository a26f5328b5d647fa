"""Speak with a checkpoint of Orpheus' token ids, by transformers and snac alone.

    python examples/orpheus_decoder.py FOLDER FOLDER/codec "VOICE: TEXT" speech.wav [--turns]

Of a folder of `sheen export`, TEXT is as in its training: of the English voice, phonemes. --turns
puts around it the control tokens of the family's own checkpoints.
"""

import sys

import soundfile
import torch
from snac import SNAC
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

SOS, EOS, SOH, EOH, SOA, PAD, CODES, SIZE = 1, 2, 3, 4, 5, 7, 10, 4096  # custom tokens
SLOTS = (0,), (1, 4), (2, 3, 5, 6)  # of each level in a frame of seven codes, in order of time


class BySlot(LogitsProcessor):  # at a slot its codes alone, and after a frame the end of speech
    def __init__(self, first, start):
        self.first, self.start = first, start

    def __call__(self, ids, scores):
        slot = (ids.shape[1] - self.start) % 7
        base, legal = self.first + CODES + SIZE * slot, torch.full_like(scores, -torch.inf)
        legal[:, base : base + SIZE] = scores[:, base : base + SIZE]
        if slot == 0 and ids.shape[1] > self.start:
            legal[:, self.first + EOS] = scores[:, self.first + EOS]
        return legal


def generate(model, tokenizer, text, turns=False, max_frames=350, **sampling):  # -> [[code] * 7]
    first, eot = map(tokenizer.convert_tokens_to_ids, ("<custom_token_0>", "<|eot_id|>"))
    ids = [*tokenizer(text)["input_ids"], first + SOS]  # with a begin token, if it adds one
    if turns:
        ids = [first + SOH, *ids[:-1], eot, first + EOH, first + SOA, first + SOS]
    made = model.generate(
        torch.tensor([ids]), attention_mask=torch.tensor([[1] * len(ids)]), **sampling,
        max_new_tokens=7 * max_frames, logits_processor=[BySlot(first, len(ids))],
        eos_token_id=first + EOS, pad_token_id=first + PAD,
    )[0, len(ids) :].tolist()  # fmt: skip
    codes = [(token - first - CODES) % SIZE for token in made]
    return [codes[at : at + 7] for at in range(0, len(made) - 6, 7)]


def decode(codec, frames):  # frame by frame: of a window of four, the second one's samples
    padded = [frames[0], *frames, frames[-1], frames[-1]]
    for window in (padded[at : at + 4] for at in range(len(frames))):
        levels = [[[frame[s] for frame in window for s in slots]] for slots in SLOTS]
        yield codec.decode([*map(torch.tensor, levels)])[0, 0, 2048:4096].detach()


if __name__ == "__main__":
    _, folder, codec, text, output, *turns = sys.argv
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer, sampling = AutoTokenizer.from_pretrained(folder), {"top_k": 0, "top_p": 0.9}
    frames = generate(model, tokenizer, text, turns, do_sample=True, temperature=0.6, **sampling)
    parts = [*decode(SNAC.from_pretrained(codec), frames)]
    soundfile.write(output, torch.cat(parts).numpy(), 24_000)
