"""Hub ids: which words are one, and the folder that one stands for.

Owns the rule. Folders come from huggingface_hub's cache, into which nothing is written here.
"""

from pathlib import Path

from sheen.storage import uris


def is_hub_id(model: str) -> bool:
    """Whether it has the form of an id and there is no such folder here."""
    is_path = uris.is_uri(model) or model.startswith(("/", ".", "~")) or model.count("/") != 1
    return not is_path and not Path(model).exists()


def located(model: str) -> str:
    """A path or URI as it is; a hub id's folder, downloaded to the hub's cache first. ValueError
    where the hub does not give it."""
    return _from_hub(model, "snapshot_download") if is_hub_id(model) else model


def located_with(model: str, name: str) -> str:
    """As `located`, if the hub's model has a file of that name; else, as any other id that a
    library downloads by itself, the id as it is."""
    return located(model) if is_hub_id(model) and _has(model, name) else model


def _has(model: str, name: str) -> bool:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        huggingface_hub.hf_hub_download(model, name)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
        return False
    return True


def check(model: str) -> None:
    """Raise ValueError unless the hub has a model of that id; of its files only one is fetched."""
    _from_hub(model, "hf_hub_download", "config.json")


def _from_hub(model: str, function: str, *arguments: str) -> str:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        path: str = getattr(huggingface_hub, function)(model, *arguments)
        return path
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"model {model!r}: no such folder here, and the hub did not give it ({error})"
        ) from error


def is_in_cache(folder: Path) -> bool:
    """Whether a folder belongs to the hub's cache, whose files are shared by all that use them."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return folder.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve())
