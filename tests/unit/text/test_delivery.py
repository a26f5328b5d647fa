"""Marks of delivery: found wherever a text is cut, refused by their own text, and left alone where
they only look like one."""

import random

import pytest

from sheen.text.delivery import MAX_PAUSES_S, Budget, Delivery, DeliveryStream, deliver
from sheen.text.items import DeliveryError, Item, Pause


def in_parts(text: str, seed: int) -> list[Item]:
    draw, stream, at = random.Random(seed), DeliveryStream("en"), 0
    found: list[Item] = []
    while at < len(text):
        size = draw.choice([1, 2, 3, 5, 8, 20])
        found += stream.push(text[at : at + size])
        at += size
    return found + stream.finish()


def test_a_pause_ends_the_sentence_before_it() -> None:
    assert deliver("Well[pause:0.5s], who [Pause: 300ms ]\nis it? [pause:2s]") == [
        "Well",
        Pause(0.5),
        ", who",
        Pause(0.3),
        "is it?",
        Pause(2.0),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[pause]",
        "a [pause: sighs] b",
        "a [pauses:1s] b",
        "a [pause:1s b",
        "a [pause:",
        "[[x] [pau",
        "[pause:1 2s]",
        "see [1] and [2].",
    ],
)
def test_what_only_looks_like_a_mark_is_text(text: str) -> None:
    assert "".join(map(str, deliver(text))) == text


@pytest.mark.parametrize(
    "given",
    ["1", "1,5s", "-1s", "+1s", "1h", "1e3s", "1.2.3s", ".s", "60.1s", "3600s", "9" * 30 + "s"],
)
def test_a_pause_that_cannot_be_is_refused_by_its_text(given: str) -> None:
    with pytest.raises(DeliveryError) as refusal:
        deliver(f"One. [pause:{given}] Two.")
    assert f"[pause:{given}]" in str(refusal.value)


def test_all_pauses_of_a_text_have_a_limit_together() -> None:
    many = "One [pause:60s] " * int(MAX_PAUSES_S / 60)
    deliver(many)
    with pytest.raises(DeliveryError, match="together"):
        deliver(f"{many} [pause:1ms]")
    budget = Budget()
    for _ in range(int(MAX_PAUSES_S / 60)):
        DeliveryStream("en", None, budget).push("One [pause:60s] ")
    with pytest.raises(DeliveryError, match="together"):
        DeliveryStream("en", None, budget).push("One [pause:60s] ")


def test_a_tag_that_the_model_does_not_know_is_text_or_refused() -> None:
    text = "One <laugh> two. <p>Three</p> x<y and <cough>"
    tags = ("<laugh>", "<p>")
    assert " ".join(map(str, deliver(text, delivery=Delivery(tags=tags)))) == text
    with pytest.raises(DeliveryError, match=r"<cough>: .*knows <laugh>, <p>"):
        deliver(text, delivery=Delivery(tags=tags, refuse_unknown_tags=True))
    with pytest.raises(DeliveryError, match=r"<laugh>: .* knows no tags"):
        deliver(text, delivery=Delivery(refuse_unknown_tags=True))


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_into_parts_does_not_matter(seed: int) -> None:
    text = "One. [pause:1.5s]Two [x] three[[pause:5ms]four. [pause:2 s] [pause: 1s] [pause:no] six"
    assert in_parts(text, seed) == deliver(text)
