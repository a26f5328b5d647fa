"""A codec that decodes in a process of its own.

Owns that process: starting it, asking it, noticing its end. On a CPU, tokens and audio in one
process take turns at Python's lock some thousand times a second, and both take a third longer
(decision 0018). What the process decodes is what `Codec.decode` gives here, bit for bit. When it
dies, its windows fail with a RuntimeError and `alive` is False for good: the engine's owner must
start a new one. It ends when its parent closes it, or ends in any way.
"""

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray
from snac import SNAC
from torch import Tensor

from sheen.codec.snac import Codec
from sheen.codec.windows import WindowCodec

END_S = 10.0
"""Seconds that the process has to end by itself once its input is closed."""


class CodecProcess(WindowCodec):
    """`decode` of a loaded codec, on the CPU, by another process, one call at a time.

    It builds the codec while the caller continues. ValueError for a codec that was not loaded by
    `load_codec`, or lies elsewhere than on the CPU.
    """

    def __init__(self, codec: Codec) -> None:
        if codec.device.type != "cpu":
            raise ValueError(f"the codec is on {codec.device}; the process decodes on the CPU")
        if codec.arguments is None:
            raise ValueError("the codec was not loaded by load_codec; no process could build it")
        super().__init__(codec.model)
        self.device = codec.device
        self._turn = threading.Lock()
        threads = str(torch.get_num_threads())
        ours, theirs = socket.socketpair()
        # Without a name: what the codec was loaded from may be gone, and nothing is left behind.
        with theirs, tempfile.TemporaryFile() as built:
            torch.save((codec.arguments, codec.model.state_dict()), built)
            built.seek(0)
            handles = [theirs.fileno(), built.fileno()]
            # A new interpreter: a fork would copy locks that other threads hold.
            self._child = subprocess.Popen(
                [sys.executable, "-m", __name__, *map(str, handles), threads],
                pass_fds=handles,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        self._connection = Connection(ours.detach())

    def alive(self) -> bool:
        return self._child.poll() is None

    def decode(
        self,
        codes: Sequence[NDArray[np.int16]],
        seeds: Sequence[int] | None = None,
        first_frames: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        try:
            with self._turn:
                self._connection.send((codes, seeds, first_frames, lengths))
                result = self._connection.recv()
        except (OSError, EOFError) as error:
            raise RuntimeError("the process that decodes audio has ended") from error
        if isinstance(result, Exception):
            raise result
        return torch.from_numpy(result)

    def close(self) -> None:
        """End the process, also one that is stuck in a call to `decode`."""
        self._connection.close()
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def serve(connection: Connection, codec: Codec) -> None:
    """The loop of the process: decode what it is sent until the other side is gone."""
    while True:
        try:
            codes, seeds, first_frames, lengths = connection.recv()
        except EOFError:
            return
        result: NDArray[np.float32] | Exception
        try:
            result = codec.decode(codes, seeds, first_frames, lengths).numpy()
        except Exception as error:  # noqa: BLE001 - it is raised on the other side
            result = RuntimeError(f"{type(error).__name__}: {error}")
        connection.send(result)


def build(handle: int) -> Codec:
    """The codec whose arguments and weights are in an open file."""
    with open(handle, "rb") as file:
        arguments, weights = torch.load(file, weights_only=True)
    codec = Codec(SNAC(**arguments), torch.device("cpu"))
    codec.model.load_state_dict(weights)
    return codec


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(Connection(int(sys.argv[1])), build(int(sys.argv[2])))
