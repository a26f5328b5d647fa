"""The extended model and generation: what was learnt comes back, token for token."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from helpers.example import ENGLISH, NEW_VOICE, clips_of, load_script, read_clip
from helpers.speaking import generate
from sheen.codec.snac import Codec
from sheen.lm.batching import Batch, collate
from sheen.lm.model import SpeechLM, extend
from sheen.lm.model_files import TokenizerCopy, load_base, load_model, save_model, to_bfloat16
from sheen.text.prompt import speaker_text

CPU = torch.device("cpu")


def small_model(base: Path) -> tuple[SpeechLM, object]:
    lm, tokenizer = load_base(str(base))
    return extend(lm, tokenizer, 4096, (4, 2, 1), seed=0), tokenizer


def overfit(model: SpeechLM, batch: Batch, steps: int, rate: float) -> float:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    loss = torch.tensor(float("inf"))
    for _ in range(steps):
        sums = model(batch)
        loss = sums.loss.sum() / sums.count.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss < 0.02:
            break
    model.eval()
    return float(loss.detach())


@pytest.mark.slow
def test_an_overfitted_clip_comes_back_token_for_token(codec: Codec, tmp_path: Path) -> None:
    """A label shifted by one, or a prompt other than training's, fails here."""
    folder = tmp_path / "base"
    script = load_script(ENGLISH / "make_base.py")
    script.main(["--output", str(folder), "--hidden-size", "128", "--layers", "2"])
    model, tokenizer = small_model(folder)
    clip = clips_of(NEW_VOICE)[0]
    (codes,) = codec.encode([torch.from_numpy(read_clip(clip))])
    frames = model.layout.interleave(codes)
    prompt = speaker_text(tokenizer, model.layout.start_id).ids(clip.text, clip.speaker)
    loss = overfit(model, collate([prompt], [frames], model.layout, 0), 400, 3e-3)
    assert loss < 0.05
    expected = [*model.layout.to_ids(frames).tolist(), model.layout.end_id]
    assert generate(model, [prompt], len(expected)) == [expected]

    # The same from bare transformers, masked to the rows that the layout records.
    save_model(model, tokenizer, tmp_path / "saved")
    bare = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        for step, token in enumerate(expected[:50]):
            logits = bare(ids).logits[0, -1]
            legal = model.layout.legal(step % 7)
            first = legal[0] + (1 if step == 0 else 0)
            assert first + int(logits[first : legal[-1] + 1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_new_rows_follow_the_tokenizer_and_are_initialised(base: Path) -> None:
    """A published table is larger than its tokenizer: the rows in between become audio rows."""
    _, tokenizer = load_base(str(base))
    known = len(tokenizer)
    config = Qwen3Config(
        vocab_size=known + 123, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, intermediate_size=64, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = Qwen3ForCausalLM(config)
    with torch.no_grad():
        lm.get_input_embeddings().weight[known:] = 0.0  # what an untrained tail may hold
        lm.get_output_embeddings().weight[known:] = 0.0
    before = lm.get_input_embeddings().weight[:known].clone()
    model = extend(lm, tokenizer, 4096, (4, 2, 1), seed=0)
    assert model.layout.first_id == known
    assert len(tokenizer) == known + 12290
    assert tokenizer.convert_tokens_to_ids("<audio_start>") == known
    for table in (lm.get_input_embeddings().weight, lm.get_output_embeddings().weight):
        assert len(table) % 64 == 0
        assert len(table) >= known + 12290
        new, old = table[known:], table[:known]
        assert float(new.std().detach()) == pytest.approx(float(old.std().detach()), rel=0.1)
        assert float(torch.pdist(new[::50].detach()).min()) > 0.01, "no two rows start equal"
    torch.testing.assert_close(lm.get_input_embeddings().weight[:known], before)


def test_new_rows_are_alike_where_codes_are(base: Path, codec: Codec) -> None:
    """`extend` gives each level its own codebook: that of the codec, coarse first."""
    lm, tokenizer = load_base(str(base))
    codebooks = [quantizer.codebook.weight for quantizer in codec.model.quantizer.quantizers]
    model = extend(lm, tokenizer, 4096, (4, 2, 1), seed=0, codebooks=codebooks)
    sample = torch.arange(0, 4096, 8)
    for level in range(len(codebooks)):
        first = model.layout.blocks[level].base
        rows = model.head.detach()[first : first + 4096][sample]
        matches = []
        for other in codebooks:
            white = (other - other.mean(0)) / other.std(0)
            pair = torch.stack([torch.pdist(white[sample]), torch.pdist(rows)])
            matches.append(float(torch.corrcoef(pair)[0, 1]))
        assert int(np.argmax(matches)) == level
        assert matches[level] > 0.3
    again, tokenizer = load_base(str(base))
    same = extend(again, tokenizer, 4096, (4, 2, 1), seed=0, codebooks=codebooks)
    assert torch.equal(model.head, same.head)


def test_extending_twice_is_refused(base: Path) -> None:
    model, tokenizer = small_model(base)
    with pytest.raises(ValueError, match="fine-tune its checkpoint"):
        extend(model.lm, tokenizer, 4096, (4, 2, 1), seed=0)


def test_a_head_that_is_more_than_a_matrix_is_refused(base: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    _, tokenizer = load_base(str(base))
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, intermediate_size=64, final_logit_softcapping=1.0,
    )  # fmt: skip
    lm = Gemma2ForCausalLM(config)
    with torch.no_grad():
        lm.get_input_embeddings().weight.mul_(50)
    with pytest.raises(ValueError, match="soft cap"):
        extend(lm, tokenizer, 4096, (4, 2, 1), seed=0)


def stored(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def test_given_weights_are_saved_in_place_of_the_model_s_own(base: Path, tmp_path: Path) -> None:
    """As gathered from processes, or of a model whose adapters are merged."""
    model, tokenizer = small_model(base)
    model(collate([[1, 2, model.layout.start_id]], [np.zeros((1, 7), np.int16)], model.layout, 0))
    own = model.head.detach().clone()
    weights = {name: 2 * part for name, part in model.state_dict().items()}
    weights["lm.lm_head.weight"] = weights["lm.model.embed_tokens.weight"]
    save_model(model, tokenizer, tmp_path, weights)
    assert torch.equal(model.head, own), "the model itself goes on as it was"
    assert "lm_head.weight" not in stored(tmp_path), "a shared table is stored once"
    loaded, _ = load_model(tmp_path, model.layout)
    for name, part in loaded.state_dict().items():
        assert torch.equal(part, weights[name]), name
    assert loaded.head is loaded.lm.get_input_embeddings().weight
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert "packed" not in str(config), "training's attention is no business of other programs"


def test_every_save_of_a_tokenizers_copy_has_its_files(base: Path, tmp_path: Path) -> None:
    """Also after one that failed half way; the original may change."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    copy, known = TokenizerCopy(tokenizer), len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(FileNotFoundError):
        copy.save_pretrained(tmp_path / "nowhere")
    saved = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        copy.save_pretrained(tmp_path / name)
        saved.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert saved[0] == saved[1]
    assert len(AutoTokenizer.from_pretrained(tmp_path / "second")) == known


def test_halved_weights_are_the_same_rounded(base: Path, tmp_path: Path) -> None:
    model, tokenizer = small_model(base)
    save_model(model, tokenizer, tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    to_bfloat16(tmp_path)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 0.51 * size
    assert {part.dtype for part in stored(tmp_path).values()} == {torch.bfloat16}
    bare = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert bare.dtype == torch.bfloat16, "the config says so"
    loaded, _ = load_model(tmp_path, model.layout)
    for name, part in loaded.state_dict().items():
        assert part.dtype == torch.float32, "training goes on in float32"
        assert torch.equal(part, model.state_dict()[name].bfloat16().float()), name


def test_a_tokenizer_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    model, tokenizer = small_model(base)
    save_model(model, tokenizer, tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not of one checkpoint"):
        load_model(tmp_path, model.layout)


def test_weights_that_the_files_lack_are_named_and_not_drawn(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    lost = next(name for name in weights if name.endswith("mlp.up_proj.weight"))
    del weights[lost]
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"files lack 1 of the weights .* such as {lost}"):
        load_base(str(tmp_path / "base"))
