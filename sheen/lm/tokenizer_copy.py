"""A tokenizer that a run saves with each of its checkpoints.

Owns the copy and its files. What is in a tokenizer is the checkpoint's business.
"""

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedTokenizerBase


class TokenizerCopy:
    """A tokenizer as it is now, to be saved many times, also while the original is in use.

    Its files are kept: with thousands of added tokens transformers takes longer to make them than
    to write a small model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = deepcopy(tokenizer)
        self._files: dict[Path, bytes] = {}

    def save_pretrained(self, folder: Path) -> None:
        if not self._files:
            with TemporaryDirectory(dir=folder) as fresh:
                self._tokenizer.save_pretrained(fresh)
                made = [path for path in Path(fresh).rglob("*") if path.is_file()]
                self._files = {path.relative_to(fresh): path.read_bytes() for path in made}
        for name, content in self._files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
