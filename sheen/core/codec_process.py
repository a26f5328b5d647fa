"""A codec that decodes in processes of its own.

Owns those processes: starting them, asking them, noticing their end. On a CPU, tokens and audio in
one process take turns at Python's lock some thousand times a second, and both take a third longer
(decision 0018). What a process decodes is what `Codec.decode` gives here, bit for bit. When one
dies, its windows fail with a RuntimeError and `alive` is False for good: whoever owns the engine
starts anew. A process ends when its parent closes it, or ends in any way.
"""

import os
import queue
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sheen.core.codec import Codec, load_codec
from sheen.core.codec_geometry import WindowCodec


class CodecProcess(WindowCodec):
    """`decode` of a loaded codec, on the CPU, by `processes` processes, as many calls at a time.

    They load it while the caller goes on. ValueError for a codec that was not loaded by
    `load_codec`, or lies elsewhere than on the CPU.
    """

    def __init__(self, codec: Codec, processes: int = 1) -> None:
        if codec.device.type != "cpu":
            raise ValueError(f"the codec is on {codec.device}; processes decode on the CPU")
        if not codec.source:
            raise ValueError(
                "the codec was not loaded from anywhere; its process could not load it"
            )
        super().__init__(codec.model)
        self.device = codec.device
        self._children: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._connections: list[Connection] = []
        threads = str(torch.get_num_threads())
        for _ in range(processes):
            ours, theirs = socket.socketpair()
            with theirs:
                # A new interpreter: a fork would copy locks that other threads hold.
                child = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno()), codec.source, threads],
                    pass_fds=[theirs.fileno()],
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
    ) -> Tensor:
        connection = self._free.get()
        try:
            connection.send((codes, seeds, first_frames))
            result = connection.recv()
        except (OSError, EOFError) as error:
            raise RuntimeError("the process that decodes audio has ended") from error
        finally:
            self._free.put(connection)
        if isinstance(result, Exception):
            raise result
        return torch.from_numpy(result)

    def close(self) -> None:
        """End the processes. No call to `decode` may be under way."""
        for connection in self._connections:
            connection.close()
        for child in self._children:
            child.wait()


def serve(connection: Connection, codec: Codec) -> None:
    """What a process does: decode what it is sent until the other side is gone."""
    while True:
        try:
            codes, seeds, first_frames = connection.recv()
        except EOFError:
            return
        result: NDArray[np.float32] | Exception
        try:
            result = codec.decode(codes, seeds, first_frames).numpy()
        except Exception as error:  # noqa: BLE001 - it is raised on the other side
            result = RuntimeError(f"{type(error).__name__}: {error}")
        connection.send(result)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    serve(Connection(int(sys.argv[1])), load_codec(sys.argv[2]))
