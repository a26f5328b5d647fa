"""The codec in a process of its own: the same samples, and an end that is noticed."""

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from snac import SNAC

from helpers.example import CODEC
from helpers.speaking import POSITIONS, WAIT_S, Sink, draw_request, random_model, speak
from sheen.codec.snac import Codec, load_codec
from sheen.codec.worker import CodecProcess
from sheen.engine.engine import Engine


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodecProcess]:
    """Of a codec whose folder is gone before they build it, as that of a voice from a store."""
    folder = tmp_path_factory.mktemp("gone") / "codec"
    shutil.copytree(CODEC, folder)
    codec = load_codec(str(folder))
    shutil.rmtree(folder)
    process = CodecProcess(codec)
    yield process
    process.close()


def codes(rows: int, frames: int, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 4096, (rows, frames * n)).astype(np.int16) for n in (1, 2, 4)]


@pytest.mark.slow
def test_a_codec_process_decodes_what_the_codec_decodes(codec: Codec, beside: CodecProcess) -> None:
    def same(seed: int) -> bool:
        levels = codes(2, 3 + seed, seed)
        arguments = [seed, seed + 1] if seed % 2 else None, [0, 5]
        return torch.equal(beside.decode(levels, *arguments), codec.decode(levels, *arguments))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(12)))
    assert beside.window(3, 7, None) == codec.window(3, 7, None)


@pytest.mark.slow
def test_what_a_codec_process_refuses_is_raised_here_and_it_goes_on(
    codec: Codec, beside: CodecProcess
) -> None:
    wrong = codes(1, 4, 0)
    wrong[0][:] = 5000
    for _ in range(2):
        with pytest.raises(RuntimeError, match="index"):
            beside.decode(wrong)
    right = codes(1, 4, 0)
    assert torch.equal(beside.decode(right), codec.decode(right))
    assert beside.alive()


@pytest.mark.slow
def test_an_engine_is_told_when_its_codec_process_has_ended(codec: Codec) -> None:
    beside = CodecProcess(codec)
    model = random_model(end=0.0)
    engine = Engine(model, beside, slots=2, max_seq_len=POSITIONS)
    request = draw_request(0, frames=20)
    samples, ending = speak(engine, request)
    alone = Engine(model, codec, slots=2, max_seq_len=POSITIONS)
    expected, _ = speak(alone, request)
    alone.close()
    assert ending.reason == "length"
    np.testing.assert_allclose(samples, expected, atol=1e-6, rtol=0)

    assert engine.alive()
    beside._child.kill()
    beside._child.wait(WAIT_S)
    sink = Sink()
    engine.submit(request, sink)
    _, ending = sink.wait()
    assert ending.reason == "error"
    assert "decodes audio has ended" in ending.error
    assert not engine.alive()
    engine.close()
    beside.close()


@pytest.mark.slow
def test_a_codec_process_ends_with_its_owner(codec: Codec) -> None:
    beside = CodecProcess(codec)
    beside._connection.close()  # as when the owner is killed
    try:
        assert beside._child.wait(WAIT_S) == 0
    except subprocess.TimeoutExpired:
        beside._child.kill()
        raise
    beside.close()


@pytest.mark.slow
def test_a_codec_that_no_process_could_load_is_refused() -> None:
    model = SNAC(encoder_dim=2, encoder_rates=[2, 2], decoder_dim=8, decoder_rates=[2, 2])
    with pytest.raises(ValueError, match="was not loaded"):
        CodecProcess(Codec(model, torch.device("cpu")))
