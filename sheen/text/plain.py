"""Recognizes English in plain words, which text normalization does not change.

Owns the rule. The grammars take 5 to 10 ms per sentence, most of the decoding time of an encode
job, although of sentences in plain words they change only abbreviations in the library's own tables
("etc.", "tv"). Text with digits, signs or words in capitals is not plain; other languages are not
supported.
"""

import re
from collections.abc import Callable, Iterable
from importlib import resources

PlainText = Callable[[str], bool]
"""Whether a part of a sentence is certainly its own spoken form."""

_TABLES = ("whitelist/tts.tsv", "whitelist/symbol.tsv")
"""Tables of the library's replacements; each line begins with a written form and a tab."""
_BY_RULE = ("st", "St", "per")
"""Words that the library replaces by rules in its code: "St" before a name, units after "per"."""
_WORD = re.compile(r"([A-Z]?[a-z]+(?:'[a-z]+)?|A|I(?:'[a-z]+)?)[,;:]?")
_NUMBERED = frozenset(("chapter", "class", "part", "article", "section", "paragraph"))
"""After these words, as after names, "I" is a Roman numeral: roman/key_word.tsv."""


def load_plain_text() -> PlainText:
    """The rule for the installed nemo_text_processing. Reads its tables of 4,000 lines."""
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
    """The longest word of each written form in plain words: a text without it does not contain the
    form."""
    plain = (
        words
        for form in forms
        if all(map(_WORD.fullmatch, words := form.rstrip(".!?").replace(". ", " ").split()))
    )
    longest = (max(words, key=len).rstrip(",;:") for words in plain if words)
    return frozenset(longest) - {"A", "I", "a"}  # forms with these have another single letter
