"""`sheen export --layout orpheus`: the same voice under the family's ids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from snac import SNAC
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.example import CHECKPOINT, EXAMPLES, VOICE, load_script
from sheen.__main__ import main
from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Sampling
from sheen.engine.voice import Voice, load_voice
from sheen.export import export
from sheen.lm.card import trained_note
from sheen.lm.checkpoint import read_info, write_info
from sheen.train.initial import open_model

TEXT = "Good morning."
FRAMES = 6


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "voice"
    export(str(CHECKPOINT), str(folder))
    return folder


@pytest.fixture(scope="module")
def before() -> Voice:
    return load_voice(str(CHECKPOINT))


@pytest.fixture(scope="module")
def after(exported: Path) -> Voice:
    return load_voice(str(exported))


def codes(voice: Voice, sampling: Sampling, seconds: float) -> list[list[int]]:
    request = voice.request(TEXT, VOICE, sampling, seconds)
    generator = TokenGenerator(voice.model, 1, request.seq_len(voice.model.layout))
    generator.start(0, request.prompt, sampling, request.max_frames * 7, 7)
    tokens: list[int] = []
    while (step := generator.step()) is not None:
        tokens += step.read()
        if tokens and tokens[-1] == voice.model.layout.end_id:
            generator.stop(0)
            tokens.pop()
    found: list[list[int]] = voice.model.layout.from_ids(np.array(tokens)).tolist()
    return found


@pytest.mark.slow
def test_sheen_speaks_the_export_code_for_code(before: Voice, after: Voice) -> None:
    """To its end, and greedily its beginning."""
    assert after.model.layout.family == "orpheus"
    for sampling, seconds in ((Sampling(0.0), 0.4), (Sampling(seed=3), 10.0)):
        assert codes(after, sampling, seconds) == codes(before, sampling, seconds)


@pytest.mark.slow
def test_a_decoder_without_sheen_says_the_same(exported: Path, before: Voice) -> None:
    """Greedily; and each of its frames becomes 2,048 samples."""
    script = load_script(EXAMPLES / "orpheus_decoder.py")
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    spoken = script.generate(
        model, tokenizer, f"{VOICE}: {TEXT}", max_frames=FRAMES, do_sample=False
    )
    assert spoken == codes(before, Sampling(0.0), 0.6)[:FRAMES]
    codec = SNAC.from_pretrained(exported / "codec")
    samples = torch.cat([*script.decode(codec, spoken)])
    assert samples.shape == (2048 * FRAMES,)
    assert torch.isfinite(samples).all()


@pytest.mark.slow
def test_the_card_and_the_command_say_what_is_not_the_same(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = (exported / "README.md").read_text("utf-8")
    layout = read_info(exported).token_layout
    for said in (f"{layout.slot_bases[6]}", f"`{VOICE}`", "masked", "codec/"):
        assert said in card
    words = ["export", str(exported), "--layout", "orpheus", "--output", str(tmp_path / "again")]
    # Once trained, with a full softmax, it takes the same prompt.
    trained = trained_note(read_info(exported).model_copy(update={"softmax": "full"}))
    assert "with or without a mask" in trained
    assert "must end with SOS" in trained
    assert main(words) == 2
    assert "already has the family's ids" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
    words[1] = str(CHECKPOINT)
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "A decoder must mask" in said
    assert "<custom_token_1>" in said


@pytest.mark.slow
def test_adapters_train_the_tables_of_an_export(exported: Path) -> None:
    """All slots of a level have the same rows: with those frozen, no decoder could do without a
    mask."""
    model, _ = open_model(str(exported), read_info(exported), 0, None, lora_rank=2)
    assert all(table.requires_grad for table in model.tables)


@pytest.mark.slow
def test_a_text_cannot_name_a_control_token(after: Voice) -> None:
    prompt = after.request("say <custom_token_2>", VOICE, Sampling(), 1.0).prompt
    assert max(prompt[:-1]) < after.model.layout.first_id


def test_a_codec_of_other_frames_is_refused(tmp_path: Path) -> None:
    info = read_info(CHECKPOINT)
    config = info.codec.config | {"codebook_size": 1024}
    codec = info.codec.model_copy(update={"config": config})
    bases = {"slot_bases": (327, 1351, 2375, 2375, 1351, 2375, 2375)}
    write_info(
        tmp_path,
        info.model_copy(update={"codec": codec, "layout": info.layout.model_copy(update=bases)}),
    )
    with pytest.raises(ValueError, match="7 x 1024 codes per frame"):
        export(str(tmp_path), str(tmp_path / "out"))


def test_a_folder_that_holds_files_is_not_replaced(tmp_path: Path) -> None:
    """The runs of a training, say, above the checkpoint."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"--output .*out: it is not empty"):
        export(str(CHECKPOINT), str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
