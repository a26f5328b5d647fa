"""A codec that decodes in processes of its own.

Owns those processes: starting them, asking them, noticing their end. On a CPU, tokens and audio in
one process take turns at Python's lock some thousand times a second, and both take a third longer
(decision 0018). What a process decodes is what `Codec.decode` gives here, bit for bit. When one
dies, its windows fail with a RuntimeError and `alive` is False for good: the engine's owner must
start a new one. A process ends when its parent closes it, or ends in any way.
"""

import io
import os
import queue
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray
from snac import SNAC
from torch import Tensor

from sheen.codec.snac import Codec, WindowCodec

CHUNK = 1 << 24  # bytes read at once
END_S = 10.0
"""Seconds that a process has to end by itself once its input is closed."""


class CodecProcess(WindowCodec):
    """`decode` of a loaded codec, on the CPU, by `processes` processes, as many calls at a time.

    They build it while the caller continues. ValueError for a codec that was not loaded by
    `load_codec`, or lies elsewhere than on the CPU.
    """

    def __init__(self, codec: Codec, processes: int = 1) -> None:
        if codec.device.type != "cpu":
            raise ValueError(f"the codec is on {codec.device}; processes decode on the CPU")
        if codec.arguments is None:
            raise ValueError("the codec was not loaded by load_codec; no process could build it")
        super().__init__(codec.model)
        self.device = codec.device
        self._children: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._connections: list[Connection] = []
        threads = str(torch.get_num_threads())
        # Without a name: what the codec was loaded from may be gone, and nothing is left behind.
        with tempfile.TemporaryFile() as built:
            torch.save((codec.arguments, codec.model.state_dict()), built)
            built.flush()
            for _ in range(processes):
                ours, theirs = socket.socketpair()
                with theirs:
                    handles = [theirs.fileno(), built.fileno()]
                    # A new interpreter: a fork would copy locks that other threads hold.
                    child = subprocess.Popen(
                        [sys.executable, "-m", __name__, *map(str, handles), threads],
                        pass_fds=handles,
                        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    )
                connection = Connection(ours.detach())
                self._children.append(child)
                self._connections.append(connection)
                self._free.put(connection)

    def alive(self) -> bool:
        return all(child.poll() is None for child in self._children)

    def decode(
        self,
        codes: Sequence[NDArray[np.int16]],
        seeds: Sequence[int] | None = None,
        first_frames: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        connection = self._free.get()
        try:
            connection.send((codes, seeds, first_frames, lengths))
            result = connection.recv()
        except (OSError, EOFError) as error:
            raise RuntimeError("the process that decodes audio has ended") from error
        finally:
            self._free.put(connection)
        if isinstance(result, Exception):
            raise result
        return torch.from_numpy(result)

    def close(self) -> None:
        """End the processes, also those that are stuck in a call to `decode`."""
        for connection in self._connections:
            connection.close()
        for child in self._children:
            try:
                child.wait(END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def serve(connection: Connection, codec: Codec) -> None:
    """The loop of a process: decode what it is sent until the other side is gone."""
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
    """The codec whose arguments and weights are in an open file, read by several at a time."""
    size = os.fstat(handle).st_size
    data = b"".join(os.pread(handle, CHUNK, start) for start in range(0, size, CHUNK))
    os.close(handle)
    arguments, weights = torch.load(io.BytesIO(data), weights_only=True)
    codec = Codec(SNAC(**arguments), torch.device("cpu"))
    codec.model.load_state_dict(weights)
    return codec


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(Connection(int(sys.argv[1])), build(int(sys.argv[2])))
