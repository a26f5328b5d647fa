"""Who speaks in which segment: found by how they sound, whatever the order and the recordings."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.example import DEMO, VOICE
from sheen.audio.io import decode_audio
from sheen.prepare.speakers import clustering as speakers
from sheen.prepare.speakers.clustering import EmbeddedSegment, find_speakers, linkage, name_speakers
from sheen.prepare.speakers.embedding import embed, embed_examples
from sheen.scoring.speaker_id import SpeakerEncoder

RATE = 16_000
SEEDS = {"ann": 1, "bob": 2, "cem": 3}


def embedding(voice: str, number: int, spread: float = 0.15) -> NDArray[np.float64]:
    """Two of one voice have a cosine of 0.85, two of others one of 0.5, about."""
    common, own = (np.random.default_rng(seed).standard_normal(64) for seed in (0, SEEDS[voice]))
    noise = np.random.default_rng((SEEDS[voice], number)).standard_normal(64)
    parts = ((0.5, common), (0.5 - spread, own), (spread, noise))
    mixed = np.sum([np.sqrt(share) * part / np.linalg.norm(part) for share, part in parts], axis=0)
    return np.asarray(mixed / np.linalg.norm(mixed))


def segments(
    counts: dict[str, int], recordings: int = 1, spread: float = 0.15
) -> list[EmbeddedSegment]:
    """Of voices in turns, 4 s each."""
    turns = sorted((number, voice) for voice, count in counts.items() for number in range(count))
    return [
        EmbeddedSegment(
            f"{voice}-{number}",
            f"recording {place % recordings}",
            5.0 * place,
            5.0 * place + 4.0,
            embedding(voice, number, spread),
        )
        for place, (number, voice) in enumerate(turns)
    ]


def voices_of(labels: dict[str, int | None]) -> dict[int | None, set[str]]:
    found: dict[int | None, set[str]] = {}
    for name, label in labels.items():
        found.setdefault(label, set()).add(name.partition("-")[0])
    return found


@pytest.mark.parametrize("recordings", [1, 4, 1000])
def test_each_voice_is_one_speaker_over_all_recordings(recordings: int) -> None:
    given = segments({"ann": 30, "bob": 20, "cem": 10}, recordings)
    found = find_speakers(given)
    assert voices_of(found.labels) == {0: {"ann"}, 1: {"bob"}, 2: {"cem"}}
    assert len(found.means) == 3
    assert found.labels.keys() == {segment.id for segment in given}


def test_the_order_of_the_segments_changes_nothing() -> None:
    given = segments({"ann": 20, "bob": 20, "cem": 20}, 3, spread=0.2)
    labels = find_speakers(given).labels
    for seed in range(3):
        assert find_speakers(random.Random(seed).sample(given, len(given))).labels == labels


def test_a_number_of_speakers_keeps_those_with_the_most_speech_and_rejects_the_others() -> None:
    given = segments({"ann": 12, "bob": 9, "cem": 5}, 2)
    one, two = (find_speakers(given, number).labels for number in (1, 2))
    assert voices_of(one) == {0: {"ann"}, None: {"bob", "cem"}}
    assert voices_of(two) == {0: {"ann"}, 1: {"bob"}, None: {"cem"}}


def test_more_speakers_than_differ_by_the_limit_are_told_apart_when_asked_for() -> None:
    given = segments({"ann": 10, "bob": 8})
    assert voices_of(find_speakers(given, same_voice=0.4).labels) == {0: {"ann", "bob"}}
    asked = find_speakers(given, 2, same_voice=0.4).labels
    assert voices_of(asked) == {0: {"ann"}, 1: {"bob"}}


def test_a_few_odd_segments_are_no_speaker_of_their_own() -> None:
    given = segments({"ann": 20, "bob": 20})
    odd = EmbeddedSegment("ann-odd", "recording 0", 900.0, 903.0, embedding("ann", 99, spread=0.29))
    others = np.stack([embedding("ann", number) for number in range(20)])
    cosine = np.mean(others @ embedding("ann", 99, spread=0.29))
    assert speakers.LIKELY_SAME < cosine < speakers.SAME_VOICE
    assert voices_of(find_speakers([*given, odd]).labels) == {0: {"ann"}, 1: {"bob"}}


def test_what_is_too_short_takes_the_voice_of_its_neighbor_in_time() -> None:
    def voiced(name: str, start: float, voice: str | None, recording: str = "a") -> EmbeddedSegment:
        known = None if voice is None else embedding(voice, round(start))
        return EmbeddedSegment(name, recording, start, start + 2, known)

    given = [
        *[voiced(f"ann-{n}", 3.0 * n, "ann") for n in range(4)],  # the last ends at 11 s
        voiced("near ann", 11.5, None),
        voiced("near bob", 17.0, None),
        *[voiced(f"bob-{n}", 20.0 + 3 * n, "bob") for n in range(4)],
        voiced("after all", 40.0, None),
        voiced("elsewhere", 5.0, None, "b"),
    ]
    labels = find_speakers(given).labels
    ann, bob = labels["ann-0"], labels["bob-0"]
    assert (labels["near ann"], labels["near bob"], labels["after all"]) == (ann, bob, bob)
    assert labels["elsewhere"] is None


def test_many_recordings_are_clustered_without_comparing_all_with_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speakers, "AT_ONCE", 12)
    given = segments({"ann": 30, "bob": 20, "cem": 10}, recordings=1000)
    assert voices_of(find_speakers(given).labels) == {0: {"ann"}, 1: {"bob"}, 2: {"cem"}}


def test_speakers_get_the_names_of_the_examples_they_resemble() -> None:
    found = find_speakers(segments({"ann": 9, "bob": 6, "cem": 4}))
    examples = {
        name: np.stack([embedding(voice, number) for number in range(100, 103)])
        for name, voice in (("Cem", "cem"), ("Ann", "ann"))
    }
    assert name_speakers(found, examples) == ["Ann", "speaker-2", "Cem"]
    assert name_speakers(found, {}) == ["speaker-1", "speaker-2", "speaker-3"]


def test_without_segments_there_are_no_speakers() -> None:
    assert find_speakers([]).labels == {}
    short = EmbeddedSegment("a", "b", 0.0, 1.0, None)
    assert find_speakers([short], 1).labels == {"a": None}
    assert name_speakers(find_speakers([short]), {}) == []


def test_average_linkage_merges_by_the_mean_of_all_pairs() -> None:
    rng = np.random.default_rng(5)
    points = rng.standard_normal((24, 6))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    groups = {place: [place] for place in range(len(points))}
    # As the definition has it: the pair of groups with the highest mean cosine, again and again.
    expected = []
    while len(groups) > 1:
        cosine, i, j = max(
            (float(np.mean(points[groups[i]] @ points[groups[j]].T)), i, j)
            for i in groups
            for j in groups
            if i < j
        )
        expected.append((i, j, cosine))
        groups[i] += groups.pop(j)
    merges = linkage(points, [1] * len(points))
    assert [merge[:2] for merge in merges] == [merge[:2] for merge in expected]
    np.testing.assert_allclose([merge[2] for merge in merges], [merge[2] for merge in expected])
    # Means of groups and their sizes stand for their members.
    halves = [points[:8], points[8:9], points[9:]]
    means = np.stack([half.mean(axis=0) for half in halves])
    (first, second, cosine), *_ = linkage(means, [len(half) for half in halves])
    assert cosine == pytest.approx(np.mean(halves[first] @ halves[second].T))


def by_channel(number: int, *voices: str) -> list[EmbeddedSegment]:
    """A call with ten segments of a voice on each channel."""
    return [
        EmbeddedSegment(
            f"{number} {channel} {place}",
            f"call {number}",
            10.0 * place + 5 * channel,
            10.0 * place + 5 * channel + 4,
            embedding(voice, 100 * number + 10 * channel + place),
            channel,
        )
        for place in range(10)
        for channel, voice in enumerate(voices)
    ]


def test_a_channel_is_one_voice_whatever_its_segments_sound_like() -> None:
    """Ann calls two people; once somebody else laughs into her telephone."""
    given = by_channel(0, "ann", "bob") + by_channel(1, "ann", "cem")
    laugh = given[26]
    given[26] = replace(laugh, embedding=embedding("bob", 300))
    given.append(EmbeddedSegment("short", "call 1", 95.0, 96.0, None, 1))
    found = find_speakers(given).labels
    labels = {name: {found[f"{name} {place}"] for place in range(10)} for name in ("0 0", "1 0")}
    assert labels == {"0 0": {0}, "1 0": {0}}
    assert len({found["0 0 0"], found["0 1 0"], found["1 1 0"]}) == 3
    assert found["short"] == found["1 1 0"]


def test_two_channels_of_a_recording_are_never_one_voice() -> None:
    found = find_speakers(by_channel(0, "ann", "ann"))
    assert voices_of(found.labels).keys() == {0, 1}
    asked = find_speakers(by_channel(0, "ann", "ann"), num_speakers=1)
    assert {asked.labels[f"0 1 {place}"] for place in range(10)} in ({None}, {0})
    assert set(asked.labels.values()) == {0, None}


@pytest.mark.slow
def test_voices_in_turns_in_one_recording_are_told_apart_and_named(tmp_path: Path) -> None:
    """Three voices of the example, as they sound; of two there are examples without a text."""
    encoder = SpeakerEncoder()
    given: list[EmbeddedSegment] = []
    for voice in ("af_aoede", "bf_alice", VOICE):
        rows = [json.loads(line) for line in (DEMO / f"{voice}.jsonl").read_text().splitlines()]
        clips = [row for row in rows if 2.0 <= row["seconds"] <= 3.5][:5]
        for number, row in enumerate(clips):
            samples = decode_audio((DEMO / row["audio"]).read_bytes(), RATE)
            start = 10.0 * number + len(given) % 3
            known = embed(encoder, samples, RATE)
            given.append(EmbeddedSegment(f"{voice}-{number}", "one", start, start + 3, known))
    found = find_speakers(given)
    voices = {label: min(names) for label, names in voices_of(found.labels).items()}
    assert sorted(voices.values()) == ["af_aoede", "bf_alice", VOICE]
    rows = []
    for voice in (VOICE, "af_aoede"):
        last = json.loads((DEMO / f"{voice}.jsonl").read_text().splitlines()[-1])
        rows.append({"audio": str(DEMO / last["audio"]), "speaker": voice.upper()})
    examples = tmp_path / "examples.jsonl"
    examples.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    names = name_speakers(found, embed_examples(encoder, str(examples)))
    for number, name in enumerate(names):
        known = voices[number] != "bf_alice"
        assert name == (voices[number].upper() if known else f"speaker-{number + 1}")
    examples.write_text(json.dumps({"audio": rows[0]["audio"], "text": "one"}), "utf-8")
    with pytest.raises(ValueError, match=r"examples\.jsonl: no row has a speaker"):
        embed_examples(encoder, str(examples))
    assert embed(encoder, np.zeros(3 * RATE, np.float32), RATE) is None
    assert embed(encoder, np.ones(RATE, np.float32), RATE) is None
