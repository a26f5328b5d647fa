"""English in plain words, which text normalization leaves as it is: known without its grammars.

Owns the rule for it. The grammars follow every reading of every character, which takes 5 to 10 ms a
sentence and is most of what decoding costs an encode job; of sentences in plain words they change
only what stands in the library's own tables of abbreviations ("etc.", "tv"). Refuses digits, signs,
words in capitals, and other languages: those are the grammars' to read.
"""

import re
from collections.abc import Callable, Iterable
from importlib import resources

PlainText = Callable[[str], bool]
"""Whether a part of a sentence is its own spoken form; without a doubt, or not."""

_TABLES = ("whitelist/tts.tsv", "whitelist/symbol.tsv")
"""What the library replaces wherever it stands, a written form and a tab first in each line."""
_BY_RULE = ("st", "St", "per")
"""Replaced by rules in its code: a saint before a name, a unit after "per"."""
_WORD = re.compile(r"([A-Z]?[a-z]+(?:'[a-z]+)?|A|I(?:'[a-z]+)?)[,;:]?")
_NUMBERED = frozenset(("chapter", "class", "part", "article", "section", "paragraph"))
"""After these an I is a Roman one, as after names: roman/key_word.tsv."""


def load_plain_text() -> PlainText:
    """The rule of the installed nemo_text_processing. Reads its tables: 4,000 lines."""
    data = resources.files("nemo_text_processing") / "text_normalization" / "en" / "data"
    forms = (
        line.partition("\t")[0]
        for table in _TABLES
        for line in data.joinpath(table).read_text("utf-8").splitlines()
    )
    replaced = _distinctive_words(forms) | frozenset(_BY_RULE)

    def is_plain(text: str) -> bool:
        before = ""
        *words, last = text.split(" ")
        for word in (*words, last.rstrip(".!?") if last[-2:-1].isalpha() else last):
            found = _WORD.fullmatch(word)
            if found is None or found[1] in replaced:
                return False
            if found[1] == "I" and before and (before in _NUMBERED or not before.islower()):
                return False
            before = found[1]
        return True

    return is_plain


def _distinctive_words(forms: Iterable[str]) -> frozenset[str]:
    """Of each written form in plain words its longest one: where that is not, the form is not."""
    plain = (
        words
        for form in forms
        if all(map(_WORD.fullmatch, words := form.rstrip(".!?").replace(". ", " ").split()))
    )
    longest = (max(words, key=len).rstrip(",;:") for words in plain if words)
    return frozenset(longest) - {"A", "I", "a"}  # such a form has another letter by itself
