"""What the corpus says: WordNet's example phrases and glosses, and composed sentences.

Owns the reading of WordNet 3.0 (Debian's `wordnet-base`), which texts are fit to be read aloud, and
the order in which a voice reads them. No text of WordNet is kept in the repository. No text is
given that shares a sentence with the held-out lists beside this file.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from compose import Composer, Words

HERE = Path(__file__).resolve().parent
WORDNET = Path("/usr/share/wordnet")
WORDNET_SHA256 = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "data.verb": "adcf43e35b581e8036d8b5a52d63d9cd3d3b4870b2720d3c03c799df44777bc2",
    "data.adj": "c89120dfc1f046ddff4a631bf9b7e9fa1a36b5e86565a23bf82dbe14f30b88a7",
    "data.adv": "444a63bf3955080ab7524f5079cfc07ff9bc682cb98bdb1db73b0fb9829f1139",
    "index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
    "index.verb": "e2ac24816c3a8289dcb72aaa9cf8db81fdf25ec34d792bfc96ac5b7a20c8b4ae",
    "index.adj": "c9865d7b4d1f805bdef82ccdcea5282436e23083e6f6f1b33e716327c4eda810",
    "index.adv": "6f5465ed5758fe9c8a2f7ec17b1300f3aa875756c70ff7cba162f7e71bcf88ea",
}
"""Of another dictionary's texts the same seed makes another corpus."""
HELD_OUT = ("everyday.txt", "hard.txt", "prose.txt")
PARTS = ("noun", "verb", "adj", "adv")
GLOSS_SHARE = 0.35
"""Of the glosses: all of them would be 130 hours."""
COMPOSED = 45_000
LONGEST_WORDS = 30
_READABLE = re.compile(r"[A-Za-z][A-Za-z ,;:'.!?-]*")
_LEMMA = re.compile(r"[a-z]{3,12}")


def held_out() -> set[str]:
    """What no training text may say, as `spoken_key`s of sentences."""
    lines = [line for name in HELD_OUT for line in (HERE / name).read_text("utf-8").splitlines()]
    keys = {spoken_key(part) for line in lines for part in (line, *_parts(line))}
    return {key for key in keys if " " in key}  # "Dr." is no sentence


def spoken_key(sentence: str) -> str:
    """Equal for sentences of the same words."""
    return " ".join(re.findall(r"[a-z0-9']+", sentence.lower()))


def _dictionary(name: str) -> Iterator[str]:
    """The lines of one of its files. ValueError where it is missing, or not that of WordNet 3.0."""
    path = WORDNET / name
    if not path.is_file():
        raise ValueError(f"{path} is missing: apt-get install wordnet-base")
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != WORDNET_SHA256[name]:
        raise ValueError(
            f"{path} is not that of WordNet 3.0, of which the corpus is made: its sha256 is "
            f"{found}, expected {WORDNET_SHA256[name]}. Debian's wordnet-base 1:3.0-37 has it"
        )
    for line in content.decode("latin-1").splitlines():
        if not line.startswith("  "):  # the licence
            yield line


def _synsets() -> Iterator[str]:
    """The gloss of every synset, examples among it: what follows `|` (wndb(5WN))."""
    for part in PARTS:
        for line in _dictionary(f"data.{part}"):
            yield line.partition("|")[2].strip()


def phrases() -> tuple[list[str], list[str]]:
    """WordNet's example phrases, and its glosses without them; as they stand there, each once."""
    examples: dict[str, None] = {}
    glosses: dict[str, None] = {}
    for gloss in _synsets():
        for example in re.findall(r'"([^"]+)"', gloss):
            if _fit(example):
                examples[example.strip()] = None
        meaning = re.sub(r"\([^)]*\)", " ", re.sub(r'"[^"]*"', "", gloss)).split(";")[0]
        meaning = re.sub(r"\s+", " ", meaning).strip(" ,:")
        if _fit(meaning) and len(meaning.split()) > 2:
            glosses[meaning] = None
    return list(examples), list(glosses)


def _fit(text: str) -> bool:
    text = text.strip()
    return bool(_READABLE.fullmatch(text)) and len(text.split()) <= LONGEST_WORDS


def common_words() -> Words:
    """Lemmas that WordNet's texts were tagged with at least once, one word each."""
    lists = []
    for part in ("noun", "adj", "adv", "verb"):
        found = []
        for line in _dictionary(f"index.{part}"):
            fields = line.split()
            # lemma pos synset_cnt p_cnt [ptr_symbol...] sense_cnt tagsense_cnt offsets...
            tagged = int(fields[5 + int(fields[3])])
            if tagged >= 1 and _LEMMA.fullmatch(fields[0]):
                found.append(fields[0])
        lists.append(found)
    return Words(*lists)


def sentences(seed: int) -> list[str]:
    """All texts of the corpus as they are written, in no order, each once: WordNet's first."""
    composer = Composer(common_words(), seed)
    composed = _allowed(composer.sentence(number) for number in range(COMPOSED))
    return list(from_wordnet(seed) | composed)


def from_wordnet(seed: int) -> dict[str, None]:
    """Those of the texts that are WordNet's, in the order of `sentences`."""
    examples, glosses = phrases()
    rng = random.Random(f"texts {seed}")
    kept = [gloss for gloss in glosses if rng.random() < GLOSS_SHARE]
    return _allowed(_as_sentence(text, rng) for text in examples + kept)


def of_file(path: Path, with_held_out: bool = False) -> list[str]:
    """The lines of a file. ValueError names the first that has a sentence of the held-out lists."""
    lines = list(dict.fromkeys(filter(None, path.read_text("utf-8").splitlines())))
    allowed = lines if with_held_out else _allowed(lines)
    if refused := next((line for line in lines if line not in allowed), None):
        raise ValueError(f"{path}: {refused!r} is held out; for recordings to score, --held-out")
    return lines


def _allowed(texts: Iterable[str]) -> dict[str, None]:
    """Each text once, but for those that share a sentence with the held-out lists."""
    avoided = held_out()
    return {
        text: None
        for text in texts
        if not any(spoken_key(part) in avoided for part in _parts(text))
    }


def _parts(text: str) -> list[str]:
    return re.split(r"(?<=[.!?;:])\s+", text)


def _as_sentence(phrase: str, rng: random.Random) -> str:
    """Four in five with a capital and a full stop; the rest as a visitor may type it."""
    if rng.random() < 0.2:
        return phrase
    ended = phrase if phrase[-1] in ".!?" else phrase.rstrip(",;:-") + "."
    return ended[0].upper() + ended[1:]


def order(texts: list[str], voice: str, seed: int) -> list[int]:
    """Which texts a voice reads, first to last: all of them, in an order of its own."""
    indices = list(range(len(texts)))
    rng = random.Random(f"order {seed} {voice}")
    for last in range(len(indices) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        indices[last], indices[other] = indices[other], indices[last]
    return indices
