"""A test module's function as the start of another process."""

import importlib.util


def call(rank: int, path: str, name: str, *arguments: object) -> None:
    """For the target of a spawned process: `name` of the module at `path`.

    By its path, since an installed package may be called `tests` too.
    """
    spec = importlib.util.spec_from_file_location("spawned", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    getattr(module, name)(rank, *arguments)
