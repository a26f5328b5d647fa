"""Speaker clustering: speaker embeddings of segments in, a speaker and a name for each out.

Owns the clustering, and the rules for segments that are too short or belong to no speaker. What is
embedded of a segment is decided by `sheen.prepare.speakers.embedding`. Clusters are formed by
average linkage, first within each recording and then over all of them; this is deterministic, and
the order of the segments only affects the numbering of voices with equal amounts of speech. A
channel of a recording is one voice, different from those of the other channels. Does not detect
overlapping speech, and takes each segment for one voice's: see `sheen.prepare.speakers.assignment`.

Shapes: n segments, D dimensions of an embedding, k clusters, v voices.
"""

from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from sheen.prepare.speakers.embedding import Floats

SAME_VOICE = 0.79
"""Least mean cosine of two clusters of one voice. Measured on 3 s of six voices, five of them
synthetic: 0.85 to 0.91 within a voice, 0.47 to 0.69 between voices, except 0.76 for two similar
synthetic ones. With 0.79 to 0.81 all six are found correctly."""
LIKELY_SAME = 0.76
"""Least mean cosine at which a small cluster joins a voice."""
FEW = 3
"""A cluster with fewer segments may be an unusual sound of a known voice, such as a laugh."""
NEVER = -1e6
"""Replaces the cosine of clusters that must not merge: no mean with others comes near 1."""
AT_ONCE = 4000
"""Most clusters that are compared pairwise: the matrix takes 128 MB."""


@dataclass(frozen=True, eq=False)
class EmbeddedSegment:
    """A segment and the embedding of its voice."""

    id: str
    recording: str
    start: float
    """Seconds in the recording."""
    end: float
    embedding: Floats | None
    """`[D]`, of length 1; None for a segment that is too short or silent."""
    channel: int | None = None
    """Channel of the recording, with a single speaker; None if there may be several."""

    @property
    def track(self) -> tuple[str, int | None]:
        return self.recording, self.channel


@dataclass(frozen=True, eq=False)
class Speakers:
    """The speakers found. Speaker 0 has the most speech.

    `labels`: the speaker of each segment by its id, None for no speaker. `means` `[k, D]`: each
    speaker's mean embedding, not normalized, so that the product of two is their mean cosine.
    `voices` `[v, D]`: centroids, of length 1, of all voices with at least FEW segments; `speaker`:
    the speaker of each, None for a voice beyond `num_speakers`.
    """

    labels: dict[str, int | None]
    means: Floats
    voices: Floats
    speaker: list[int | None]


@dataclass(frozen=True, eq=False)
class _Cluster:
    members: list[EmbeddedSegment]
    sum: Floats

    @property
    def mean(self) -> Floats:
        return self.sum / len(self.members)

    @property
    def order(self) -> tuple[float, str]:
        """Sort key: most speech first."""
        seconds = sum(member.end - member.start for member in self.members)
        return -round(seconds, 3), min(member.id for member in self.members)

    @property
    def is_voice(self) -> bool:
        """Whether it is more than an unusual sound."""
        return len(self.members) >= FEW or bool(self.channels)

    @cached_property
    def channels(self) -> dict[str, set[int]]:
        """By recording, the single-speaker channels of the members."""
        found: dict[str, set[int]] = defaultdict(set)
        for member in self.members:
            if member.channel is not None:
                found[member.recording].add(member.channel)
        return found

    def apart(self, other: "_Cluster") -> bool:
        """Whether the two are on different channels of a recording, and must not merge."""
        shared = self.channels.keys() & other.channels.keys()
        return any(self.channels[name] != other.channels[name] for name in shared)


def find_speakers(
    segments: Iterable[EmbeddedSegment],
    num_speakers: int | None = None,
    same_voice: float = SAME_VOICE,
) -> Speakers:
    """The speakers of all segments, given in any order.

    `num_speakers` None: clusters with a mean cosine of at least `same_voice` are one speaker. With
    a number, the speakers are that many clusters, those with the most speech; others join them
    from LIKELY_SAME on, or belong to no speaker. If there are too few clusters, the threshold is
    raised.
    """
    ordered = sorted(segments, key=lambda segment: (segment.recording, segment.start, segment.id))
    known = [segment for segment in ordered if segment.embedding is not None]
    found = _clusters(known, same_voice)
    others: list[_Cluster] = []
    if num_speakers is not None:
        for stricter in np.arange(same_voice, 1.0, 0.02):
            if len(found := _clusters(known, float(stricter))) >= num_speakers:
                break
        found, others = _join_likely(found[:num_speakers], found[num_speakers:])
    labels: dict[str, int | None] = {
        member.id: number for number, one in enumerate(found) for member in one.members
    }
    labels |= {member.id: None for one in others for member in one.members}
    _label_unknown(ordered, labels)
    dimensions = len(known[0].embedding) if known and known[0].embedding is not None else 0
    means = np.array([one.mean for one in found]).reshape(len(found), dimensions)
    voices = [one for one in (*found, *others) if one.is_voice]
    sums = np.array([one.sum for one in voices]).reshape(len(voices), dimensions)
    return Speakers(
        labels,
        means,
        sums / np.linalg.norm(sums, axis=1, keepdims=True),
        [labels[one.members[0].id] for one in voices],
    )


def name_speakers(
    speakers: Speakers, examples: Mapping[str, Floats], same_voice: float = SAME_VOICE
) -> list[str]:
    """A name for each speaker: that of the most similar example, else `speaker-1` and so on.

    `examples`: by name, the embeddings `[m, D]` of its recordings. Several speakers may get the
    same name, such as those of one person at two microphones.
    """
    known = {name: points.mean(axis=0) for name, points in sorted(examples.items())}
    names = []
    for number, mean in enumerate(speakers.means):
        cosines = {name: float(mean @ example) for name, example in known.items()}
        best = max(cosines, key=lambda name: cosines[name], default=None)
        alike = best is not None and cosines[best] >= same_voice
        names.append(best if best is not None and alike else f"speaker-{number + 1}")
    return names


def _clusters(known: Sequence[EmbeddedSegment], same_voice: float) -> list[_Cluster]:
    """Clusters within each recording, merged over all recordings; most speech first."""
    tracks: dict[tuple[str, int | None], list[_Cluster]] = defaultdict(list)
    for segment in known:
        assert segment.embedding is not None
        tracks[segment.track].append(_Cluster([segment], segment.embedding))
    found: list[_Cluster] = []
    for (_, channel), singles in tracks.items():
        found += _merged(singles, same_voice) if channel is None else [_joined(singles)]
    merged = _merged(found, same_voice)
    few = [one for one in merged if not one.is_voice]
    kept, others = _join_likely([one for one in merged if one.is_voice], few)
    return sorted([*kept, *others], key=lambda one: one.order)


def _merged(clusters: list[_Cluster], same_voice: float) -> list[_Cluster]:
    """Merge clusters of one voice. Beyond AT_ONCE, smaller clusters only join larger ones."""
    ordered = sorted(clusters, key=lambda one: one.order)
    first, rest = ordered[:AT_ONCE], ordered[AT_ONCE:]
    if not first:
        return []
    roots = list(range(len(first)))
    means = np.stack([one.mean for one in first])
    by_recording: dict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(first):
        for recording in one.channels:
            by_recording[recording].append(place)
    apart = [
        (i, j)
        for places in by_recording.values()
        for i, j in combinations(places, 2)
        if first[i].apart(first[j])
    ]
    for i, j, cosine in linkage(means, [len(one.members) for one in first], apart):
        if cosine >= same_voice:
            roots = [roots[i] if root == roots[j] else root for root in roots]
    groups: dict[int, list[_Cluster]] = defaultdict(list)
    for root, one in zip(roots, first, strict=True):
        groups[root].append(one)
    merged = [_joined(group) for group in groups.values()]
    for one in rest:
        cosines = np.stack([other.mean for other in merged]) @ one.mean
        cosines[[other.apart(one) for other in merged]] = NEVER
        best = int(np.argmax(cosines))
        if cosines[best] >= same_voice:
            merged[best] = _joined([merged[best], one])
        else:
            merged.append(one)
    return merged


def _joined(group: Sequence[_Cluster]) -> _Cluster:
    members = [member for one in group for member in one.members]
    return _Cluster(members, np.sum([one.sum for one in group], axis=0))


def linkage(
    means: Floats, sizes: Sequence[int], apart: Sequence[tuple[int, int]] = ()
) -> list[tuple[int, int, float]]:
    """Average linkage of clusters by cosine: merges `(i, j, mean cosine)`, most similar first.

    `means` `[m, D]`: mean embeddings of the clusters' members; `sizes`: numbers of members. Cluster
    j is merged into i < j, which keeps its number. Uses nearest-neighbor chains (Benzecri 1982), in
    O(m^2), as SciPy does, whose function takes no sizes. Pairs in `apart`, and clusters that
    contain them, have the cosine NEVER.
    """
    cosines = means @ means.T
    for i, j in apart:
        cosines[i, j] = cosines[j, i] = NEVER
    np.fill_diagonal(cosines, -np.inf)
    weights = np.array(sizes, np.float64)
    alive = np.ones(len(means), bool)
    merges: list[tuple[int, int, float]] = []
    chain: list[int] = []
    while len(merges) < len(means) - 1:
        if not chain:
            chain.append(int(np.argmax(alive)))
        row = cosines[chain[-1]]
        best = int(np.argmax(row))
        if len(chain) < 2 or row[chain[-2]] < row[best]:
            chain.append(best)
            continue
        i, j = sorted((chain.pop(), chain.pop()))
        merges.append((i, j, float(cosines[i, j])))
        mean = (weights[i] * cosines[i] + weights[j] * cosines[j]) / (weights[i] + weights[j])
        cosines[i] = cosines[:, i] = mean
        cosines[i, i] = -np.inf
        cosines[j] = cosines[:, j] = -np.inf
        weights[i] += weights[j]
        alive[j] = False
    return sorted(merges, key=lambda merge: -merge[2])


def _join_likely(
    voices: list[_Cluster], others: list[_Cluster]
) -> tuple[list[_Cluster], list[_Cluster]]:
    """Let `others` join the most similar voice from LIKELY_SAME on; returns voices and the rest."""
    if not voices:
        return [], others
    means = np.stack([one.mean for one in voices])
    groups = [[one] for one in voices]
    left: list[_Cluster] = []
    for one in others:
        cosines = means @ one.mean
        cosines[[voice.apart(one) for voice in voices]] = NEVER
        best = int(np.argmax(cosines))
        (groups[best] if cosines[best] >= LIKELY_SAME else left).append(one)
    return sorted(map(_joined, groups), key=lambda one: one.order), left


def _label_unknown(ordered: Sequence[EmbeddedSegment], labels: dict[str, int | None]) -> None:
    """Segments without an embedding get the label of the nearest segment with one in their
    recording, or its channel; the earlier one at equal distance; None if there is none."""
    tracks: dict[tuple[str, int | None], list[EmbeddedSegment]] = defaultdict(list)
    for segment in ordered:
        tracks[segment.track].append(segment)
    for segments in tracks.values():
        known = [segment for segment in segments if segment.embedding is not None]
        starts = [segment.start for segment in known]
        for segment in segments:
            if segment.embedding is not None:
                continue
            place = bisect(starts, segment.start)
            near = known[max(0, place - 1) : place + 1]
            nearest = min(near, key=lambda other: _gap(segment, other), default=None)
            labels[segment.id] = None if nearest is None else labels[nearest.id]


def _gap(one: EmbeddedSegment, other: EmbeddedSegment) -> float:
    return max(other.start - one.end, one.start - other.end)
