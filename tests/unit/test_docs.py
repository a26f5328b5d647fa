"""Pages that lead from recordings to a voice: each command goes on from the one before."""

import re
import shlex

import pytest

from helpers.example import ROOT

TAKES = {"prepare": "--input", "encode": "--input", "train": "--data"}
"""The flag for what the command before has made; for all others it is --model."""
COMMAND = re.compile(r"(?:^sheen |jobs/)(prepare|encode|train|speak|serve|evaluate)(?:\.py)? ")


def commands(page: str) -> list[list[tuple[str, list[str]]]]:
    """Of each path that begins with preparing: names and words of the commands."""
    text = (ROOT / page).read_text("utf-8")
    paths: list[list[tuple[str, list[str]]]] = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := COMMAND.search(line):
                if found[1] == "prepare":
                    paths.append([])
                if paths:
                    paths[-1].append((found[1], shlex.split(line, comments=True)))
    return paths


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/guides/prepare.md"])
def test_each_command_takes_what_the_ones_before_have_made(page: str) -> None:
    paths = commands(page)
    assert paths
    for path in paths:
        made: list[str] = []
        for name, words in path:
            flag = TAKES.get(name, "--model")
            if name != "prepare" and "--config" not in words:
                taken = words[words.index(flag) + 1]
                assert any(taken == one or taken.startswith(f"{one}/") for one in made), words
            if "--output" in words:
                made.append(words[words.index("--output") + 1])
