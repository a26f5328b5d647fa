"""A copy in main memory of a state that keeps changing."""

from typing import Any

from torch import Tensor


def on_host(state: Any) -> Any:
    """A copy of `state` (dicts, lists and tuples) whose tensors are in main memory and its own.

    A tensor that is in it twice stays one.
    """
    copies: dict[int, Tensor] = {}

    def copy(part: Any) -> Any:
        if isinstance(part, Tensor):
            if id(part) not in copies:
                copies[id(part)] = part.detach().to("cpu", copy=True)
            return copies[id(part)]
        if isinstance(part, dict):
            return {name: copy(value) for name, value in part.items()}
        if isinstance(part, list | tuple):
            return type(part)(copy(value) for value in part)
        return part

    return copy(state)
