"""SSML: what is followed, what is reported, and what is refused."""

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheen.text.delivery import deliver
from sheen.text.items import DeliveryError, Item, Pause, Style
from sheen.text.kept import expected_transcript
from sheen.text.ssml import Scope, read_ssml

SCOPE = Scope("slt", {"slt": "slt", "alloy": "rms"}, tags=("<laugh>",), speed=2.0)
SLT, RMS = Style("slt"), Style("rms")


def items(inner: str, scope: Scope = SCOPE) -> list[Item]:
    return deliver(f"<speak>{inner}</speak>", "en", ssml=scope)


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        ("One\n  and two. Three.", ["One and two.", "Three."]),
        ("<p><s>One</s><s>two</s></p>three", ["One", "two", "three"]),
        ("a &lt;laugh&gt; &amp; <laugh/>!", ["a <laugh> & <laugh>!"]),
        ('One <break time="250ms"/> two<break/>', ["One", Pause(0.25), "two", Pause(0.5)]),
        ('a<break strength="none"/>b<break strength="x-strong"/>c', ["ab", Pause(1.5), "c"]),
        ('<sub alias="World Wide Web">WWW<b>x</b></sub> it', ["World Wide Web it"]),
        ("a [pause:1s] b", ["a", Pause(1.0), "b"]),
        ('<audio src="http://x/y"><desc>a dog</desc>woof</audio>', ["woof"]),
        ("<title>T</title><!-- c --><?p i?><![CDATA[x <y>]]>", ["x <y>"]),
        ('a <voice name="alloy">b</voice> c', ["a", RMS, "b", SLT, "c"]),
        (
            '<prosody rate="slow">a <prosody rate="+50%">b</prosody></prosody>',
            [Style("slt", 0.64), "a", Style("slt", 0.96), "b", Style("slt", 0.64), SLT],
        ),
        ('<phoneme ph="tuː">two</phoneme>.', ["two."]),
        ('<s xmlns="http://www.w3.org/2001/10/synthesis" xml:lang="en">a</s>', ["a"]),
        ('<mstts:express-as style="x">a</mstts:express-as>', ["a"]),
        ("", []),
    ],
)
def test_supported_elements_become_what_they_ask_for(inner: str, expected: list[Item]) -> None:
    assert items(inner) == expected


@pytest.mark.parametrize("rate", ["1.5", "150%", "+50%"])
def test_a_rate_is_written_in_several_ways(rate: str) -> None:
    assert items(f'<prosody rate="{rate}">a</prosody>') == [Style("slt", 1.5), "a", SLT]


def test_phonemes_are_given_where_the_model_was_taught_them() -> None:
    scope = Scope(None, {}, phonemes=True)
    [sentence] = items('Say <phoneme alphabet="ipa" ph="təˈmeɪtoʊ">tomato</phoneme>!', scope)
    assert isinstance(sentence, str)
    assert "təˈmAtO" in sentence
    assert expected_transcript(sentence) == "Say tomato!"
    with pytest.raises(DeliveryError, match="may contain only text"):
        items('<phoneme ph="ɪ">a<break/></phoneme>', scope)


def test_what_is_not_followed_is_reported() -> None:
    document = read_ssml(
        '<speak><emphasis>a</emphasis><say-as interpret-as="date">b</say-as><foo/><voice>x</voice>'
        '<phoneme ph="a">c</phoneme><prosody pitch="high" foo="1">d</prosody></speak>',
        SCOPE,
    )
    assert document.ignored == {
        "ssml.emphasis",
        "ssml.say-as",
        "ssml.other",
        "ssml.voice",
        "ssml.phoneme",
        "ssml.prosody.pitch",
        "ssml.prosody.other",
    }


def test_elements_that_are_no_tags_are_refused_where_such_tags_are() -> None:
    strict = replace(SCOPE, refuse_unknown_tags=True)
    assert items("<laugh/> <emphasis>a</emphasis> <x:y>b</x:y><p>c</p>", strict)
    with pytest.raises(DeliveryError, match=r"<cough>: an unknown tag; .* knows <laugh>"):
        items("a <cough/> b", strict)


BOMB = '<!DOCTYPE speak [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><speak>&b;</speak>'
EXTERNAL = '<!DOCTYPE speak SYSTEM "file:///etc/passwd"><speak>a</speak>'


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (BOMB, "DOCTYPE"),
        (EXTERNAL, "DOCTYPE"),
        ("<speak>" + "<p>" * 20 + "a" + "</p>" * 20 + "</speak>", "more than 10"),
        ("hello", "not XML: syntax error, line 1, column 1"),
        ("<speak>a\n & b</speak>", "not XML: .*, line 2"),
        ("<speak>&nbsp;</speak>", "not XML: undefined entity"),
        ("<speak>a</speak><speak>b</speak>", "not XML"),
        ("<ssml>a</ssml>", "<ssml>: expected <speak>"),
        ("", "not XML"),
        ('<speak><break time="1h"/></speak>', '<break time="1h">: expected seconds'),
        ('<speak><break time="3600s"/></speak>', "a pause of 3600 s; at most 60 s are allowed"),
        ('<speak><break strength="big"/></speak>', "expected one of none"),
        ("<speak><sub>a</sub></speak>", "<sub>: expected the attribute alias"),
        ("<speak><phoneme>a</phoneme></speak>", "<phoneme>: expected the attribute ph"),
        ('<speak><phoneme alphabet="x-sampa" ph="a">a</phoneme></speak>', "expected ipa"),
        ('<speak><prosody rate="quick">a</prosody></speak>', "expected one of x-slow"),
        ('<speak><prosody rate="300%">a</prosody></speak>', "speed of 2 it is 6; expected 0.25"),
        ('<speak><prosody rate="-100%">a</prosody></speak>', "it is 0; expected 0.25"),
        ('<speak><voice name="bob">a</voice></speak>', '"bob">: this model has: slt, alloy'),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(document: str, message: str) -> None:
    with pytest.raises(DeliveryError, match=message):
        deliver(document, "en", ssml=SCOPE)


@given(st.text(alphabet='<>/&;!"=[]-?speakvoice brt1\n\ud800', max_size=80))
def test_anything_else_is_text_or_an_error(text: str) -> None:
    for document in (text, f"<speak>{text}</speak>"):
        with suppress(DeliveryError):
            deliver(document, "en", ssml=SCOPE)
