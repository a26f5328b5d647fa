"""The records of checkpoints and datasets: what is refused, and what `sheen convert` makes of old
ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.example import CODEC, ENGLISH, load_script
from sheen import convert
from sheen.codec.info import describe_codec
from sheen.data import dataset
from sheen.engine.types import Sampling
from sheen.engine.voice import load_voice
from sheen.lm import checkpoint
from sheen.lm.checkpoint import (
    CheckpointInfo,
    DurationModel,
    LayoutInfo,
    ReferenceInfo,
    SamplingDefaults,
)
from sheen.lm.model import extend
from sheen.lm.model_files import save_model
from sheen.text.normalization import NemoStep
from sheen.text.steps import NfcSpaceStep

Keys = dict[str, Any]
NEMO_1 = {"library": "nemo_text_processing", "version": "1.2.0", "language": "en"}
"""As format 1 had it before texts were normalised in parts."""
NEMO = NemoStep(version="1.2.0", language="en", segmentation="sentences")


def write(path: Path, data: Keys) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), "utf-8")
    return path


def read(path: Path) -> Keys:
    return dict(json.loads(path.read_text("utf-8")))


def codec_keys() -> Keys:
    return describe_codec(str(CODEC)).model_copy(update={"embedded": False}).model_dump()


def old_checkpoint(first_id: int, **changes: Any) -> Keys:
    """`sheen.json` of format 1."""
    return {
        "format_version": 1,
        "layout": {"first_id": first_id, "codebook_size": 4096, "strides": [4, 2, 1]},
        "codec": codec_keys(),
        "sample_rate": 24_000,
        "template": "speaker-text-1",
        "normaliser": "nfc-space-1",
        "normalisation": None,
        "objective": "legal rows",
        "voices": ["ann"],
        "pace": {"ann": {"frames": 8.5, "frames_per_character": 0.5}},
        "text_characters": 32,
        "max_positions": 2048,
    } | changes


def old_dataset(**changes: Any) -> Keys:
    """`dataset.json` of format 1."""
    return {
        "format_version": 1, "codec": codec_keys(), "sample_rate": 24_000, "normalisation": None,
    } | changes  # fmt: skip


def new_checkpoint() -> CheckpointInfo:
    layout = LayoutInfo(
        start_id=258, end_id=259, slot_bases=(260, 4356, 8452, 8452, 4356, 8452, 8452)
    )
    return CheckpointInfo(layout=layout, codec=codec_keys(), sample_rate=24_000, max_seq_len=2048)  # type: ignore[arg-type]


# What is refused


@pytest.mark.parametrize("name", ["checkpoint", "two words"])
def test_an_old_record_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    write(folder / "sheen.json", old_checkpoint(258))
    write(folder / "dataset.json", old_dataset())
    quoted = f"'{folder}'" if " " in name else str(folder)
    readers: list[Callable[[str], Any]] = [checkpoint.read_info, dataset.read_info, load_voice]
    for reader in readers:
        with pytest.raises(ValueError, match="format_version is 1, this Sheen knows 2") as error:
            reader(str(folder))
        assert f"`sheen convert {quoted}`" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", [3, 0, "2", None])
def test_another_format_version_is_refused_by_name(tmp_path: Path, version: object) -> None:
    for name, reader in (("sheen", checkpoint.read_info), ("dataset", dataset.read_info)):
        path = write(tmp_path / f"{name}.json", {"format_version": version})
        message = f"{path}: format_version is {version!r}, this Sheen knows 2; use the version"
        with pytest.raises(ValueError, match=message):
            reader(str(tmp_path))
        with pytest.raises(ValueError, match=message):
            convert.convert(str(tmp_path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layout.family", "kani", "layout.family is 'kani', this Sheen knows 'sheen' or 'orpheus'"),
        ("layout.family", "orpheus", "not those of the family 'orpheus' for this codec"),
        ("layout.end_id", 7, "layout: .*'end_id': 7.* not those of the family 'sheen'.*259"),
        ("layout.slot_bases", [1], "not those of the family 'sheen'"),
        (
            "prompt.name",
            "maya2",
            "prompt.name is 'maya2', this Sheen knows 'speaker-text', 'orpheus'",
        ),
        (
            "prompt.name",
            "maya1",
            "'maya1', whose control tokens do not exist in the layout family 'sheen'",
        ),
        ("prompt.version", "9", "prompt.version is '9', this Sheen knows '1'"),
        ("normalizer", [{"name": "g2p"}], "normalizer.0.name is 'g2p', .* 'nfc-space'"),
        ("softmax", "legal rows", "softmax is 'legal rows', this Sheen knows 'masked' or 'full'"),
        ("reference", {"form": "three-turn"}, "reference.form is 'three-turn', .* 'two-turn'"),
        ("sampling", {"temprature": 1}, "sampling.temprature is 1, .* no such key"),
        ("pace", {}, "pace is {}, and this Sheen knows no such key"),
        ("max_seq_len", "long", "max_seq_len is 'long'"),
        ("codec.config", {"codebook_size": 2048}, "codec.config is not a SNAC codec's"),
    ],
)
def test_what_a_checkpoint_does_not_know_is_refused_by_name(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    keys = new_checkpoint().model_dump(mode="json")
    *outer, last = key.split(".")
    inner = keys
    for part in outer:
        inner = inner[part]
    inner[last] = value
    path = write(tmp_path / "sheen.json", keys)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.read_info(tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_what_a_dataset_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    info = dataset.DatasetInfo(codec=codec_keys(), sample_rate=24_000)  # type: ignore[arg-type]
    keys = info.model_dump(mode="json")
    path = write(tmp_path / "dataset.json", keys | {"normalizer": [{"name": "g2p"}]})
    message = f"{path}: normalizer.0.name is 'g2p', this Sheen knows 'nemo_text_processing'"
    with pytest.raises(ValueError, match=message):
        dataset.read_info(str(tmp_path))
    del keys["codec"]
    write(tmp_path / "dataset.json", keys)
    with pytest.raises(ValueError, match=f"{path}: codec is missing"):
        dataset.read_info(str(tmp_path))


def test_a_checkpoints_optional_keys_come_back(tmp_path: Path) -> None:
    info = new_checkpoint().model_copy(
        update={
            "softmax": "full",
            "normalizer": (NEMO, NfcSpaceStep()),
            "voices": ["ann"],
            "duration_model": {"ann": DurationModel(base_frames=1.5, frames_per_char=0.25)},
            "tags": ["<laugh>"],
            "sampling": SamplingDefaults(
                temperature=0.6, repetition_penalty=1.1, repetition_window="all"
            ),
            "reference": ReferenceInfo(form="one-turn"),
        }
    )
    checkpoint.write_info(tmp_path, info)
    assert checkpoint.read_info(tmp_path) == info
    checkpoint.write_info(tmp_path, new_checkpoint())
    assert checkpoint.read_info(tmp_path) == new_checkpoint()
    assert not {"sampling", "reference", "max_chunk_chars"} & read(tmp_path / "sheen.json").keys()


# What is converted


def test_a_converted_checkpoint_has_the_tokens_and_prompts_of_before(tmp_path: Path) -> None:
    make_base = load_script(ENGLISH / "make_base.py")
    tokenizer = make_base.build_tokenizer()
    lm = make_base.build_model(tokenizer, 64, 1, seed=0)
    first_id = len(tokenizer)
    model = extend(lm, tokenizer, 4096, (4, 2, 1), seed=0)
    save_model(model, tokenizer, tmp_path)
    write(tmp_path / "sheen.json", old_checkpoint(first_id))
    kept = {path: path.read_bytes() for path in tmp_path.iterdir() if path.name != "sheen.json"}
    (change,) = convert.convert(str(tmp_path))
    assert change.startswith(f"{tmp_path / 'sheen.json'}: format 1 to 2, layout has ids by slot")
    assert "pace is duration_model" in change
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(list(tmp_path.iterdir())) == len(kept) + 1

    voice = load_voice(str(tmp_path))
    assert voice.model.layout == model.layout
    names = ["<audio_start>", "<audio_end>"]
    names += [f"<snac_{level}_0>" for level in (0, 1, 2, 2, 1, 2, 2)]
    layout = voice.info.layout
    ids = [layout.start_id, layout.end_id, *layout.slot_bases]
    assert ids == tokenizer.convert_tokens_to_ids(names)
    request = voice.request("  four\ntwo ", "ann", Sampling(), 30.0)
    assert request.prompt == [*tokenizer("ann: four two")["input_ids"], first_id]
    frames = (8.5 + 0.5 * len("four two")) * 3 + 2 * 24_000 / 2048
    assert request.max_frames == int(frames)
    assert voice.info.max_chunk_chars == 32


@pytest.mark.parametrize(("before", "now"), [("legal rows", "masked"), ("all rows", "full")])
def test_every_key_of_an_old_checkpoint_has_a_place(tmp_path: Path, before: str, now: str) -> None:
    step = NEMO_1 | {"parts": "parts-1"}
    old = old_checkpoint(258, objective=before, normalisation=step)
    write(tmp_path / "sheen.json", old)
    convert.convert(str(tmp_path))
    parts = NEMO.model_copy(update={"segmentation": "parts-1"})
    expected = new_checkpoint().model_copy(
        update={
            "softmax": now,
            "normalizer": (parts, NfcSpaceStep()),
            "voices": ["ann"],
            "duration_model": {"ann": DurationModel(base_frames=8.5, frames_per_char=0.5)},
            "max_chunk_chars": 32,
        }
    )
    assert checkpoint.read_info(tmp_path) == expected


def test_a_checkpoint_of_before_some_keys_is_converted(tmp_path: Path) -> None:
    old = old_checkpoint(258)
    for key in ("normalisation", "text_characters", "objective", "pace", "voices"):
        del old[key]
    write(tmp_path / "sheen.json", old)
    convert.convert(str(tmp_path))
    assert checkpoint.read_info(tmp_path) == new_checkpoint()


@pytest.mark.parametrize(("step", "steps"), [(None, ()), (NEMO_1, (NEMO,))])
def test_a_converted_dataset_says_what_it_said(
    tmp_path: Path, step: Keys | None, steps: tuple[NemoStep, ...]
) -> None:
    write(tmp_path / "dataset.json", old_dataset(normalisation=step))
    rows = tmp_path / "rows" / "status=encoded" / "0.parquet"
    rows.parent.mkdir(parents=True)
    rows.write_bytes(b"rows")
    assert len(convert.convert(str(tmp_path))) == 1
    info = dataset.read_info(str(tmp_path))
    assert info.normalizer == steps
    assert info.codec.model_dump() == codec_keys()
    assert info.sample_rate == 24_000
    assert rows.read_bytes() == b"rows"


def test_a_jobs_output_is_converted_with_all_its_checkpoints(tmp_path: Path) -> None:
    """And can be resumed: what decided its result is recorded under the names of now."""
    for name in ("checkpoint", "run/step-00000002/checkpoint", "run/best-00000002"):
        write(tmp_path / name / "sheen.json", old_checkpoint(258))
    write(tmp_path / "run" / "run.json", {"objective": "all rows", "seed": 1})
    codes = {"normalisation": NEMO_1, "format": [1, "id", "text"], "rows": 5}
    write(tmp_path / "codes" / "run.json", codes)
    assert len(convert.convert(str(tmp_path))) == 5
    for path in tmp_path.rglob("sheen.json"):
        checkpoint.read_info(path.parent)
    assert read(tmp_path / "run" / "run.json") == {"softmax": "full", "seed": 1}
    assert read(tmp_path / "codes" / "run.json") == {
        "normalizer": [NEMO.model_dump()], "format": [2, "id", "text"], "rows": 5,
    }  # fmt: skip
    assert convert.convert(str(tmp_path)) == []


def test_a_folder_is_converted_by_its_uri(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    write(folder / "sheen.json", old_checkpoint(258))
    assert len(convert.convert(folder.as_uri())) == 1
    assert checkpoint.read_info(folder.as_uri()) == checkpoint.read_info(folder)


def test_a_current_folder_is_left_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.write_info(tmp_path, new_checkpoint())
    before = (tmp_path / "sheen.json").stat()
    assert convert.main([str(tmp_path)], "sheen convert") == 0
    assert capsys.readouterr().out == f"{tmp_path}: nothing to convert (current)\n"
    after = (tmp_path / "sheen.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_codec_has_nothing_to_convert(capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.main([str(CODEC)], "sheen convert") == 0
    assert "nothing to convert (a codec's files have no format" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "speaker-text-9"}, "template is 'speaker-text-9', .* speaker-text-1"),
        ({"normaliser": "none-1"}, "normaliser is 'none-1', .* nfc-space-1"),
        ({"objective": "some rows"}, "objective is 'some rows', .* legal rows, all rows"),
        ({"normalisation": NEMO_1 | {"library": "wetext"}}, "normalizer.0.name is 'wetext'"),
        ({"flavour": 1}, "flavour is 1, and this Sheen knows no such key"),
        ({"layout": {"codebook_size": 9, "strides": [1], "first_id": 0}}, "is not of the codec's"),
        ({"layout": {}}, "not a valid file of format 1 .*codebook_size"),
    ],
)
def test_an_old_record_that_no_sheen_wrote_is_refused_and_nothing_is_changed(
    tmp_path: Path, changes: Keys, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "a" / "sheen.json", old_checkpoint(258))
    bad = write(tmp_path / "b" / "sheen.json", old_checkpoint(258, **changes))
    with pytest.raises(ValueError, match=f"{bad}: .*{message}"):
        convert.convert(str(tmp_path))
    assert read(good) == old_checkpoint(258)
    assert convert.main([str(tmp_path)], "sheen convert") == 2
    assert capsys.readouterr().err.startswith(f"sheen convert: error: {bad}: ")


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", write(tmp_path / "config.json", {})):
        with pytest.raises(ValueError, match=str(folder)):
            convert.convert(str(folder))
