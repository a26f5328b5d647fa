"""WER of an exported checkpoint, spoken by Sheen and by `examples/orpheus_decoder.py` without it.

    python benchmarks/export_wer.py --asr base          # the English voice, everyday.txt

Both get the same texts, as the model was trained on them, and the same sampling settings; their
draws differ. Prints the table of docs/orpheus.md.
"""

import argparse
import runpy
import tempfile
from pathlib import Path

import numpy as np
import torch
from snac import SNAC
from transformers import AutoModelForCausalLM, AutoTokenizer

from sheen.codec.info import CODEC_FOLDER
from sheen.engine.voice import load_voice
from sheen.export import export
from sheen.scoring.asr.transcribers import open_transcriber
from sheen.scoring.wer import error_rate, normalize_english, word_error_difference
from sheen.speaker import Speaker
from sheen.text.segmentation import split_sentences

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples/orpheus_decoder.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default=str(ROOT / "examples/english/voice"), help="Sheen checkpoint")
    add("--prompts", type=Path, default=ROOT / "examples/english/everyday.txt")
    add("--sentences", type=int, default=100, help="how many of the prompts")
    add("--asr", default="base", help="as of jobs/evaluate.py")
    add("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    script = runpy.run_path(str(SCRIPT))
    texts = options.prompts.read_text("utf-8").splitlines()[: options.sentences]
    with tempfile.TemporaryDirectory() as folder:
        export(options.model, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        codec = SNAC.from_pretrained(Path(folder) / CODEC_FOLDER)
    voice = load_voice(options.model)
    name = next(iter(voice.info.voices), None)
    before = f"{name}: " if name else ""
    sides: dict[str, list[np.ndarray]] = {"Sheen": [], SCRIPT.name: []}
    ours, theirs = sides.values()
    with Speaker(options.model) as speaker:
        for seed, text in enumerate(texts):
            ours.append(speaker.synthesize(text, name, seed=seed).samples)
    for seed, text in enumerate(texts):
        words = filter(None, map(voice.model_input, split_sentences(text, voice.language)))
        sampling = voice.sampling(seed)  # the checkpoint's own, as Sheen's
        torch.manual_seed(seed)
        frames = script["generate"](
            model, tokenizer, before + " ".join(words), do_sample=True, top_k=sampling.top_k,
            temperature=sampling.temperature, top_p=sampling.top_p,
        )  # fmt: skip
        theirs.append(torch.cat([*script["decode"](codec, frames)]).numpy())
    asr = open_transcriber(options.asr)
    expected, heard = [normalize_english(text) for text in texts], {}
    print(
        f"{len(texts)} sentences, {asr.name}\n\n| decoder | WER | seconds of audio |\n|---|---|---|"
    )
    for side, clips in sides.items():
        said = asr.transcribe(clips, voice.codec.sample_rate)
        heard[side] = [normalize_english(text) for text in said]
        wer = error_rate("word", expected, heard[side])
        seconds = sum(map(len, clips)) / voice.codec.sample_rate
        print(f"| {side} | {wer.rate:.1%} [{wer.low:.1%}, {wer.high:.1%}] | {seconds:.0f} |")
    more = word_error_difference(expected, *heard.values())
    print(f"\ndifference: {more.difference:+.1%} [{more.low:+.1%}, {more.high:+.1%}]")


if __name__ == "__main__":
    main()
