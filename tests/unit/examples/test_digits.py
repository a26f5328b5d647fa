"""The digits example: what its committed files promise, and what its scripts draw and build."""

import importlib.util
import shutil
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy
import pytest
import soundfile
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.spoken_digits import RECORDED, read_digits
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import load_codec
from sheen.config import JobConfig, load_config
from sheen.data.dataset import read_utterances
from sheen.data.prompts import read_prompts
from sheen.encode.config import EncodeConfig
from sheen.engine.sampler import Sampling
from sheen.evaluate.config import EvaluateConfig
from sheen.lm.batching import is_held_out
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.config import TrainConfig

DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits"


def load(name: str) -> ModuleType:
    """The script of this name, which is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"digits_{name}", DIGITS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make_corpus = load("make_corpus")
make_base = load("make_base")


def heldout() -> list[str]:
    return (DIGITS / "heldout.txt").read_text(encoding="utf-8").splitlines()


def read_rows(folder: Path) -> list[list[str]]:
    lines = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    return [line.split("|") for line in lines]


# The recordings' texts


def corpus_rows() -> list[tuple[str, str, str]]:
    """Of the corpus that the demo reads: id, text, voice."""
    rows: list[tuple[str, str, str]] = make_corpus.corpus_rows(
        heldout(), make_corpus.VOICES, None, 0
    )
    return rows


def test_rows_are_digit_strings_in_four_voices() -> None:
    rows = corpus_rows()
    assert Counter(row[2] for row in rows) == {"slt": 80, "rms": 80, "awb": 80, "kal16": 200}
    assert len({row[0] for row in rows}) == len(rows)
    for name, text, speaker in rows:
        assert name.startswith(f"{speaker}-")
        assert 2 <= len(text.split(" ")) <= 6
        assert set(text.split(" ")) <= set(make_corpus.WORDS)


def test_no_row_holds_a_held_out_string() -> None:
    assert len(set(heldout())) == 400
    assert not set(heldout()) & {text for _, text, _ in corpus_rows()}


def test_the_strings_are_those_that_the_codec_and_the_voice_were_taught() -> None:
    """Some of them are kept with the tests."""
    drawn = {name: text for name, text, _ in corpus_rows()}
    kept = {name: text for name, text, *_ in read_rows(RECORDED) if "-h" not in name}
    assert len(kept) > 30
    assert kept.items() <= drawn.items()


def test_held_out_list_is_the_one_the_script_draws() -> None:
    drawn = make_corpus.draw_heldout()
    assert heldout() == drawn
    assert Counter(len(text.split()) for text in drawn) == {2: 20, 3: 95, 4: 95, 5: 95, 6: 95}


def test_each_held_out_string_is_spoken_once_and_by_the_voices_in_turn() -> None:
    # Voice k speaks lines k, k + 4, k + 8, ...: spelled out here, not asked of the script.
    expected = [
        (f"{voice}-h{number:03d}", text, voice)
        for k, voice in enumerate(["slt", "rms", "awb", "kal16"])
        for number, text in enumerate(heldout()[k::4], start=1)
    ]
    assert make_corpus.heldout_rows(heldout(), make_corpus.VOICES, None) == expected
    assert len(expected) == 400


def test_held_out_strings_of_every_voice_have_the_same_lengths() -> None:
    for voice in make_corpus.VOICES:
        rows = make_corpus.heldout_rows(heldout(), [voice], None)
        lengths = Counter(len(text.split()) for _, text, _ in rows)
        assert lengths.pop(2) == 5
        assert sorted(lengths) == [3, 4, 5, 6]
        assert set(lengths.values()) <= {23, 24}


# Drawing strings


def test_same_seed_draws_the_same_strings() -> None:
    drawn = make_corpus.draw_strings("slt", 50, 3, frozenset())
    assert make_corpus.draw_strings("slt", 50, 3, frozenset()) == drawn
    assert make_corpus.draw_strings("slt", 20, 3, frozenset()) == drawn[:20]
    assert make_corpus.draw_strings("slt", 50, 4, frozenset()) != drawn
    assert make_corpus.draw_strings("awb", 50, 3, frozenset()) != drawn


def test_a_held_out_string_is_never_drawn() -> None:
    # All pairs of digits but one: any slip would show at the first string of two digits.
    pairs = {f"{a} {b}" for a in make_corpus.WORDS for b in make_corpus.WORDS}
    drawn = make_corpus.draw_strings("slt", 500, 0, pairs - {"nine one"})
    assert [text for text in drawn if len(text.split()) == 2] == ["nine one"]


def test_strings_are_distinct_when_a_length_runs_out() -> None:
    drawn = make_corpus.draw_strings("slt", 600, 0, frozenset())
    assert len(set(drawn)) == 600
    assert Counter(len(text.split()) for text in drawn) == {2: 100, 3: 125, 4: 125, 5: 125, 6: 125}


def test_more_strings_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="only 1111100 are not held out"):
        make_corpus.draw_strings("slt", 1_111_101, 0, frozenset())


# Picking held-out strings


@given(
    st.sets(st.sampled_from(make_corpus.VOICES), min_size=1),
    st.integers(min_value=1, max_value=100),
)
@settings(database=None)
def test_some_held_out_rows_are_rows_of_all(voices: set[str], per_voice: int) -> None:
    rows = make_corpus.heldout_rows(heldout(), sorted(voices), per_voice)
    assert Counter(row[2] for row in rows) == dict.fromkeys(voices, per_voice)
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(make_corpus.heldout_rows(heldout(), make_corpus.VOICES, None))


def test_a_few_held_out_rows_are_of_all_lengths() -> None:
    rows = make_corpus.heldout_rows(heldout(), ["awb"], 20)
    assert Counter(len(row[1].split()) for row in rows) == {2: 1, 3: 5, 4: 5, 5: 5, 6: 4}


# Refusals


def test_an_output_folder_in_use_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(SystemExit) as exit_info:
        make_corpus.main(["--output", str(tmp_path)])
    assert exit_info.value.code == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--per-voice", "101"], "101 strings for voice 'slt': only 100 are held out"),
        (["--voices", "slt", "kal"], "voice 'kal' has no held-out strings"),
        (["--write-heldout"], "not allowed with argument --heldout"),
        (["--per-voice", "0"], "0 is less than 1"),
    ],
)
def test_what_no_held_out_recordings_can_be_made_of_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    output = tmp_path / "heldout"
    with pytest.raises(SystemExit) as exit_info:
        make_corpus.main(["--heldout", "--output", str(output), *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_missing_flite_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as exit_info:
        make_corpus.main(["--output", str(tmp_path / "corpus")])
    assert exit_info.value.code == 2
    assert "apt-get install flite" in capsys.readouterr().err
    assert not (tmp_path / "corpus").exists()


def test_held_out_list_is_never_written_twice(tmp_path: Path) -> None:
    path = tmp_path / "heldout.txt"
    make_corpus.write_heldout(path)
    assert path.read_bytes() == (DIGITS / "heldout.txt").read_bytes()
    path.write_text("one two\n")
    with pytest.raises(ValueError, match="exists"):
        make_corpus.write_heldout(path)
    assert path.read_text() == "one two\n"


@pytest.mark.parametrize("line", ["one", "one  two", "one two ", "one ten", "1 2", ""])
def test_a_held_out_line_that_would_match_nothing_is_an_error(tmp_path: Path, line: str) -> None:
    path = tmp_path / "heldout.txt"
    path.write_text(f"one two\n{line}\n")
    with pytest.raises(ValueError, match="line 2"):
        make_corpus.read_heldout(path)


# flite is a system package that only making a corpus needs, so it may be absent.
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


@needs_flite
@pytest.mark.parametrize("flags", [[], ["--heldout"]], ids=["corpus", "held out"])
def test_flite_speaks_the_first_rows(flags: list[str], tmp_path: Path) -> None:
    """As it spoke those that are kept with the tests, as Opus."""
    output = tmp_path / "made"
    words = ["--output", str(output), "--voices", "awb", "slt", "--per-voice", "1"]
    make_corpus.main([*words, *flags])
    first = "h001" if flags else "0001"
    rows = read_rows(output)
    assert [name for name, *_ in rows] == [f"awb-{first}", f"slt-{first}"]
    kept = read_rows(RECORDED)
    assert all(row in kept for row in rows)
    assert len(list((output / "wavs").iterdir())) == 2
    for name, text, *_ in rows:
        path = output / "wavs" / f"{name}.flac"
        info = soundfile.info(path)
        assert (info.format, info.subtype, info.channels) == ("FLAC", "PCM_16", 1)
        assert info.samplerate == 16_000
        assert 0.25 < info.duration / len(text.split()) < 0.75
        samples = soundfile.read(path)[0]
        assert 0.15 < numpy.abs(samples).max() < 0.99
        spoken = read_digits(name, 16_000)
        assert abs(len(spoken) - len(samples)) < 16
        length = min(len(spoken), len(samples))
        assert numpy.corrcoef(spoken[:length], samples[:length])[0, 1] > 0.95


@needs_flite
def test_what_is_missing_is_made_and_what_is_there_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, spoken = tmp_path / "corpus", tmp_path / "heldout"
    for name, value in (("CORPUS", corpus), ("HELDOUT_SPOKEN", spoken)):
        monkeypatch.setattr(make_corpus, name, value)
    monkeypatch.setattr(make_corpus, "PER_VOICE", dict.fromkeys(make_corpus.VOICES, 1))
    spoken.mkdir()
    (tmp_path / "corpus.unfinished").mkdir()
    (tmp_path / "corpus.unfinished" / "left by an interrupted run").touch()
    make_corpus.main(["--missing"])
    assert [row[0] for row in read_rows(corpus)] == [f"{v}-0001" for v in make_corpus.VOICES]
    assert sorted(tmp_path.iterdir()) == [corpus, spoken]
    assert list(spoken.iterdir()) == []


@needs_flite
def test_a_voice_flite_would_replace_by_its_default_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no voice nobody: it has .*slt"):
        make_corpus.check_flite(["slt", "nobody"])


# The configurations


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("encode", EncodeConfig),
        ("train", TrainConfig),
        ("voice", TrainConfig),
        ("evaluate", EvaluateConfig),
        ("codec", CodecTrainConfig),
    ],
)
def test_configurations_are_ones_that_the_jobs_take(name: str, config: type[JobConfig]) -> None:
    load_config(config, ["--config", str(DIGITS / f"{name}.yaml")], name)


def test_the_evaluation_samples_as_serving_does() -> None:
    config = load_config(EvaluateConfig, ["--config", str(DIGITS / "evaluate.yaml")], "evaluate")
    chosen = Sampling.of({}, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    assert chosen == Sampling()


def test_prompts_of_the_base_are_held_out_of_its_training_and_left_for_judging() -> None:
    config = load_config(TrainConfig, ["--config", str(DIGITS / "voice.yaml")], "train")
    prompts = read_prompts(str(DIGITS / "prompts.jsonl"))
    assert all(is_held_out(prompt.text, config.eval_share, config.seed) for prompt in prompts)
    assert not set(heldout()) & {prompt.text for prompt in prompts}
    # No string of two digits is among the hundredth that the run holds out.
    kinds = Counter((prompt.speaker, len(prompt.text.split())) for prompt in prompts)
    assert kinds == Counter((voice, n) for voice in ("slt", "rms", "awb") for n in (3, 4, 5, 6))


# The kept rows of the old voices


def test_kept_rows_are_of_the_voices_that_the_voice_knows_and_none_is_held_out() -> None:
    codec = load_codec(str(DIGITS / "codec"))
    layout = TokenLayout(0, codec.codebook_size, codec.strides)
    read = read_utterances(str(DIGITS / "old-voices.parquet"), layout)
    assert not read.dropped
    assert Counter(read.speakers) == {"slt": 1200, "rms": 600, "awb": 600}
    assert not set(heldout()) & set(read.texts)


# The base model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    make_base.main(["--output", str(folder), "--hidden-size", "64", "--layers", "1"])
    return folder


def test_tokenizer_gives_any_text_back(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)

    @settings(database=None)
    @given(st.text())
    @example("four  two   seven ")
    @example("Grüße, 你好 🙂\t!\r\n do n't , stop .")
    def check(text: str) -> None:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.encode())

    check()


def test_a_phoneme_is_one_token_and_takes_its_stress_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_base.main(["--output", str(folder), "--hidden-size", "64", "--layers", "1", "--phonemes"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("slt: ˌI wˈɑnt “sˈɛvᵊn”!")["input_ids"]
    assert [tokenizer.decode(token) for token in ids] == [
        "s", "l", "t", ":", " ", "ˌI", " ", "w", "ˈɑ", "n", "t", " ", "“", "s", "ˈɛ", "v", "ᵊ", "n",
        "”", "!",
    ]  # fmt: skip
    for text in ("Grüße, 你好 🙂\t!\r\n", "ˈˈɛ ˌ ᵊᵻ …—", "ᵃ€ɏ"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == len(tokenizer)


def test_one_ascii_character_is_one_token_of_its_own(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = [tokenizer.encode(chr(code)) for code in range(128)]
    assert all(len(ids) == 1 for ids in encoded)
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    assert len({ids[0] for ids in encoded} | special) == 130
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


def test_base_opens_with_the_auto_classes_and_has_a_row_per_token(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    inputs = tokenizer("four two", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 8, len(tokenizer))
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_seed_decides_the_weights() -> None:
    tokenizer = make_base.build_tokenizer()

    def first_row(seed: int) -> torch.Tensor:
        model = make_base.build_model(tokenizer, 64, 1, seed)
        weight: torch.Tensor = model.get_input_embeddings().weight
        return weight[0]

    assert torch.equal(first_row(0), first_row(0))
    assert not torch.equal(first_row(0), first_row(1))


def test_default_base_has_a_few_million_parameters() -> None:
    model = make_base.build_model(make_base.build_tokenizer(), 256, 6, 0)
    assert model.num_parameters() == 4_493_824


def test_base_refuses_a_width_that_heads_do_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        make_base.main(["--output", str(tmp_path / "model"), "--hidden-size", "100"])
    assert exit_info.value.code == 2
    assert "multiple of 64" in capsys.readouterr().err
