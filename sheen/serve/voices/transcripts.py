"""Whether a `ref_text` is the transcript of its recording, by what an aligner hears in it.

Owns the comparison and its limit. Hears nothing itself.
"""

from sheen.serve.errors import APIError
from sheen.text.segmentation import has_word

WRONG_TEXT = 0.6
"""Character error rate above which a text is another one. Between unrelated English sentences of
similar length it was 0.62 to 1, half of them above 0.85 (240 pairs)."""


def check_words(text: str, heard: str, language: str | None) -> None:
    """Raise APIError for a `ref_text` that is not what was `heard` in its recording.

    Accepts any where the comparison would mean nothing: for a model of no known language, and for
    numbers outside English, which each side writes in its own way.
    """
    from sheen.scoring.wer import normalize_english, normalize_words, rate_of_each  # imports torch

    if language is None or not has_word(text):
        return
    if language != "en" and any(character.isdigit() for character in text + heard):
        return
    read = normalize_english if language == "en" else normalize_words
    # Without spaces: "four two seven" may be heard as 427.
    said, found = ("".join(normalize_words(read(words)).split()) for words in (text, heard))
    if rate_of_each("character", [said], [found])[0] > WRONG_TEXT:
        raise APIError(
            400,
            f"ref_text: these are not the words of the recording, in which {heard[:200]!r} was "
            "heard. Send all of its words and no others, or no ref_text: then the server takes "
            "what it hears",
            param="ref_text",
            code="invalid_reference",
        )
