"""Lexicons: which words of a text they are for, and entries that are refused by their word."""

import json
import pickle
import sys
from pathlib import Path

import pytest

from sheen.text.delivery import Delivery, DeliveryError, Pause, deliver
from sheen.text.items import Item, as_written
from sheen.text.kept import expected_transcript, fragments, with_phonemes
from sheen.text.lexicon import Lexicon, read_lexicon, respell
from sheen.text.normalization import describe as describe_words
from sheen.text.phonemes import describe as describe_phonemes
from sheen.text.ssml import Scope
from sheen.text.steps import NfcSpaceStep, TextPipeline

ENTRIES = {
    "sql": "sequel",
    "US": "you ess",
    "C++": "see plus plus",
    "New York": "new yark",
    "new": "knew",
    "café": "kaffay",
    "Dr.": "doctor",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SQL, sql and MySQL.", "sequel, sequel and MySQL."),
        ("US: tell us.", "you ess: tell us."),
        ("C++, not C.", "see plus plus, not C."),
        ("A new day in New  York, new york.", "A knew day in new yark, knew york."),
        ("cafe\u0301 or CAFÉ", "kaffay or kaffay"),
        ("The US's café's", "The you ess's kaffay's"),
        ("Dr. Newman", "doctor Newman"),
        ("nothing here", "nothing here"),
    ],
)
def test_whole_words_are_said_otherwise(text: str, expected: str) -> None:
    assert respell(text, [Lexicon(ENTRIES)]) == expected


def test_the_work_does_not_grow_with_the_number_of_entries_that_begin_like_the_text() -> None:
    text = "a " * 200

    def calls(count: int) -> int:
        lexicon = Lexicon({"a " * 40 + f"b{number}": "x" for number in range(count)})
        made = 0

        def note(*event: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(note)
        try:
            assert respell(text, [lexicon]) == text
        finally:
            sys.setprofile(None)
        return made

    assert calls(200) == calls(2)


def test_the_first_lexicon_counts_and_nothing_is_said_twice() -> None:
    lexicons = [Lexicon({"a": "b"}), Lexicon({"a": "c", "b": "d"})]
    assert respell("a b", lexicons) == "b d"


def test_a_sentence_remembers_how_it_was_written() -> None:
    delivery = Delivery(lexicons=(Lexicon(ENTRIES),))
    text = "We use SQL, c++ and it. Nothing here."
    assert [as_written(str_of(item)) for item in deliver(text, "en", delivery)] == [
        "We use SQL, c++ and it.",
        "Nothing here.",
    ]
    document = (
        'A <sub alias="World Wide Web.">W<b>W</b>W</sub> and SQL; <sub alias="Doctor">Dr.</sub> '
        '<sub alias="One. Two">1 2</sub> <sub alias="...">x</sub>'
    )
    said = deliver(f"<speak>{document}</speak>", "en", delivery, Scope(None, {}))
    assert said == ["A World Wide Web.", "and sequel; Doctor One.", "Two ..."]
    assert [as_written(str_of(item)) for item in said] == ["A WWW.", "and SQL; Dr. 1 2", " ..."]
    carried = pickle.loads(pickle.dumps(said))
    assert [as_written(item) for item in carried] == [as_written(str_of(item)) for item in said]


def str_of(item: Item) -> str:
    assert isinstance(item, str)
    return item


def test_tags_are_no_words() -> None:
    assert respell("a laugh <laugh>", [Lexicon({"laugh": "laff"})], ["<laugh>"]) == "a laff <laugh>"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"Nguyen": "/nwin/"}, "'Nguyen'.*respelling"),
        ({"x": " "}, "'x'.*no word"),
        ({"x": "..."}, "'x'.*no word"),
        ({"": "x"}, "''.*expected a word"),
        ({"--": "x"}, "'--'.*expected a word"),
        ({"x\ud83d": "x"}, r"'x\\ud83d' holds half of a surrogate pair"),
        ({"x": "y\ud83d"}, r"'x': the pronunciation holds half of a surrogate pair"),
    ],
)
def test_an_entry_that_cannot_be_is_refused_by_its_word(
    entry: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Lexicon(entry)
    with pytest.raises(ValueError, match=r"'x': .*'q'"):
        Lexicon({"x": "/kwq/"}, phonemes=True)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.json"
    for content, message in (
        ("{", "lexicon.json: "),
        ("[]", "expected an object"),
        ('{"a": 1}', "'a': expected text"),
        ('{"a": "b", "a": "c"}', "'a' occurs twice"),
        ('{"a": "/b/"}', "lexicon.json: 'a': .*respelling"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_lexicon(str(path))
    path.write_text(json.dumps(ENTRIES))
    assert respell("sql", [read_lexicon(str(path))]) == "sequel"


def test_a_lexicon_goes_with_marks_and_may_not_make_a_text_too_long() -> None:
    delivery = Delivery(lexicons=(Lexicon({"a": "b " * 100}),))
    assert deliver("a [pause:1s] x", delivery=delivery) == ["b " * 99 + "b", Pause(1.0), "x"]
    with pytest.raises(DeliveryError, match="adds more than"):
        deliver("a " * 100, delivery=delivery)


def test_what_users_send_is_never_taken_for_phonemes() -> None:
    [item] = deliver(f"one {with_phonemes('two', 'tˈu')} three")
    assert item == "one twotˈu three"


def test_phonemes_that_were_given_pass_every_step() -> None:
    steps = (describe_words("en"), describe_phonemes("en"), NfcSpaceStep())
    pipeline = TextPipeline(steps, ("<laugh>",))
    lexicon = Lexicon({"Nguyen": "/nwɪn/", "Joe": "/dʒoʊ/"}, phonemes=True)
    [sentence] = deliver("Nguyen, 2 of Joe <laugh>!", "en", Delivery(lexicons=(lexicon,)))
    assert isinstance(sentence, str)
    words = pipeline.words(sentence)
    assert (
        pipeline.expected_transcript(words)
        == expected_transcript(words, ("<laugh>",))
        == "Nguyen, two of Joe !"
    )
    assert pipeline.model_input(words) == f"nwɪn, {pipeline.model_input('two of')} ʤO <laugh>!"
    assert "".join(fragment.text for fragment in fragments(words, ("<laugh>",))) == words
