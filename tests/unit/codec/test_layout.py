"""The token layout: codes <-> ids is the identity, and only legal rows can be drawn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheen.codec.layout import Family, TokenLayout

STRIDES = {"24 kHz": (4, 2, 1), "32 and 44 kHz": (8, 4, 2, 1)}


def random_codes(layout: TokenLayout, frames: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [
        generator.integers(0, layout.codebook_size, frames * per_frame).astype(np.int16)
        for per_frame in layout.codes_per_frame
    ]


def test_a_frame_has_its_levels_in_the_fields_order() -> None:
    assert [level for level, _ in TokenLayout(0, 4096, (4, 2, 1)).slots] == [0, 1, 2, 2, 1, 2, 2]
    four = TokenLayout(0, 4096, (8, 4, 2, 1))
    assert [level for level, _ in four.slots] == [0, 1, 2, 3, 3, 2, 3, 3, 1, 2, 3, 3, 2, 3, 3]
    # The field's order within a frame: L0[i], L1[2i], L2[4i], L2[4i+1], L1[2i+1], ...
    assert TokenLayout(0, 4096, (4, 2, 1)).slots == (
        (0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3),
    )  # fmt: skip


@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
@given(first_id=st.integers(0, 200_000), frames=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_codes_survive_the_way_to_ids_and_back(
    strides: tuple[int, ...], first_id: int, frames: int, seed: int
) -> None:
    layout = TokenLayout(first_id, 4096, strides)
    codes = random_codes(layout, frames, seed)
    for level in codes:
        level[0], level[-1] = 0, 4095  # the ends of the range, code 0 above all
    ids = layout.to_ids(layout.interleave(codes))
    assert len(ids) == frames * layout.tokens_per_frame
    assert ids.min() >= layout.blocks[0].base
    assert ids.max() < first_id + layout.size
    back = layout.deinterleave(layout.from_ids(ids))
    for given_level, returned in zip(codes, back, strict=True):
        np.testing.assert_array_equal(given_level, returned)


@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES)
def test_every_row_that_may_stand_at_a_slot_is_a_legal_code(strides: tuple[int, ...]) -> None:
    layout = TokenLayout(1000, 4096, strides)
    for slot in range(layout.tokens_per_frame):
        legal = list(layout.legal(slot))
        if slot == 0:
            assert legal.pop(0) == layout.end_id
        assert layout.end_id not in legal
        assert layout.start_id not in legal
        assert len(legal) == 4096
        frame = np.array([layout.legal(s)[-1] for s in range(layout.tokens_per_frame)])
        frames = np.tile(frame, (4096, 1))
        frames[:, slot] = legal
        decoded = layout.from_ids(frames.reshape(-1))
        np.testing.assert_array_equal(decoded[:, slot], np.arange(4096))


def test_ids_are_distinct_and_named_once() -> None:
    layout = TokenLayout(7, 16, (4, 2, 1))
    names = layout.token_names()
    assert len(names) == len(set(names)) == layout.size == 2 + 3 * 16
    assert names[layout.start_id - 7] == "<audio_start>"
    assert names[layout.end_id - 7] == "<audio_end>"
    assert names[layout.blocks[2].base + 5 - 7] == "<snac_2_5>"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[:2], "2 levels of codes, expected 3"),
        (lambda c: [c[0], c[1][:-1], c[2]], "level lengths"),
        (lambda c: [c[0], c[1], c[2][:-4]], "level lengths"),
        (lambda c: [level[:0] for level in c], "no codes"),
        (lambda c: [c[0], c[1] * 0 + 4096, c[2]], "outside 0..4095"),
        (lambda c: [c[0] * 0 - 1, c[1], c[2]], "outside 0..4095"),
    ],
)
def test_codes_the_codec_could_not_have_made_are_named(change, message: str) -> None:  # type: ignore[no-untyped-def]
    layout = TokenLayout(0, 4096, (4, 2, 1))
    codes = change(random_codes(layout, 3, 0))
    assert message in (layout.check(codes) or "")
    with pytest.raises(ValueError, match=message):
        layout.interleave(codes)


def test_ids_out_of_place_are_refused() -> None:
    layout = TokenLayout(0, 4096, (4, 2, 1))
    ids = layout.to_ids(layout.interleave(random_codes(layout, 2, 0)))
    with pytest.raises(ValueError, match="whole frames"):
        layout.from_ids(ids[:-1])
    swapped = ids.copy()
    swapped[[7, 8]] = swapped[[8, 7]]
    with pytest.raises(ValueError, match="frame 1, slot 0"):
        layout.from_ids(swapped)


@pytest.mark.parametrize("strides", [(), (4, 2), (4, 3, 1)])
def test_strides_that_make_no_tree_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="strides"):
        TokenLayout(0, 4096, strides)


# Ids by slot

BASES = {"orpheus": 128_256, "vyvo-qwen3": 151_669, "vyvo-lfm2": 64_400}
"""By form, the id of <custom_token_0>; maya1, Veena and Svara have that of Orpheus."""


def test_the_golden_row_id_for_id_both_ways() -> None:
    """The first frame of huggingface.co/datasets/matheusfpinto/test_tokenization."""
    layout = TokenLayout(128_256, 4096, (4, 2, 1), "orpheus")
    ids = [129602, 132782, 137788, 141962, 148291, 148942, 154935]
    frame = [1336, 420, 1330, 1408, 3641, 196, 2093]
    assert layout.from_ids(np.array(ids)).tolist() == [frame]
    assert layout.to_ids(np.array([frame], np.int16)).tolist() == ids
    # Slot order: L0[i], L1[2i], L2[4i], L2[4i+1], L1[2i+1], L2[4i+2], L2[4i+3].
    levels = layout.deinterleave(layout.from_ids(np.array(ids)))
    assert [level.tolist() for level in levels] == [[1336], [420, 3641], [1330, 1408, 196, 2093]]
    assert (layout.start_id, layout.end_id) == (128_257, 128_258)
    bases = [128266, 132362, 136458, 140554, 144650, 148746, 152842]
    assert layout.slot_bases.tolist() == bases
    assert layout.first_id + layout.size == 156_939  # <|audio|> of the published tokenizer


@pytest.mark.parametrize(
    ("form", "start", "first_code", "last"),
    [
        ("orpheus", 128_257, 128_266, 156_937),
        ("vyvo-qwen3", 151_670, 151_679, 180_350),
        ("vyvo-lfm2", 64_401, 64_410, 93_081),
    ],
)
def test_the_published_forms_have_their_published_ids(
    form: str, start: int, first_code: int, last: int
) -> None:
    layout = TokenLayout(BASES[form], 4096, (4, 2, 1), "orpheus")
    assert (layout.start_id, layout.end_id) == (start, start + 1)
    assert layout.slot_bases[0] == first_code
    assert layout.slot_bases[6] + 4095 == last
    assert layout.token_names()[-1] == "<custom_token_28682>"


@given(
    first_id=st.sampled_from([300, *BASES.values()]),
    size=st.sampled_from([8, 4096]),
    strides=st.sampled_from(list(STRIDES.values())),
    frames=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_survive_the_way_to_ids_per_slot_and_back(
    first_id: int, size: int, strides: tuple[int, ...], frames: int, seed: int
) -> None:
    layout = TokenLayout(first_id, size, strides, "orpheus")
    codes = random_codes(layout, frames, seed)
    for level in codes:
        level[0], level[-1] = 0, size - 1
    interleaved = layout.interleave(codes)
    np.testing.assert_array_equal(
        interleaved, TokenLayout(0, size, strides).interleave(codes), "the order is one"
    )
    ids = layout.to_ids(interleaved)
    for at, token in enumerate(ids.tolist()):
        slot = at % layout.tokens_per_frame
        assert (token - first_id - 10) // size == slot
        assert token in layout.legal(slot)
    for given_level, returned in zip(codes, layout.deinterleave(layout.from_ids(ids)), strict=True):
        np.testing.assert_array_equal(given_level, returned)


@pytest.mark.parametrize("family", ["sheen", "orpheus"])
def test_columns_are_the_end_or_nothing_and_then_the_codes(family: Family) -> None:
    layout = TokenLayout(300, 8, (4, 2, 1), family)
    assert len(set(layout.token_names())) == layout.size
    for slot, number in enumerate(layout.slot_blocks):
        block = layout.blocks[number]
        assert block.level == layout.slots[slot][0]
        codes = [block.base + code for code in range(8)]
        assert list(layout.columns(block))[1:] == codes
        assert list(layout.legal(slot)) == ([layout.end_id] if slot == 0 else []) + codes
    assert layout.columns(layout.blocks[0])[0] == layout.end_id
    ended = [block.ends for block in layout.blocks]
    assert ended == [True] + [False] * (len(ended) - 1)


def test_a_code_of_another_slot_of_its_level_is_refused() -> None:
    layout = TokenLayout(300, 8, (4, 2, 1), "orpheus")
    ids = layout.to_ids(layout.interleave(random_codes(layout, 2, 0)))
    ids[8] = ids[8] - layout.slot_bases[1] + layout.slot_bases[4]
    with pytest.raises(ValueError, match=r"frame 1, slot 1: .*level 1, 318 to 325"):
        layout.from_ids(ids)
