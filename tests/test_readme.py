"""The documents keep their word: commands parse, files exist, YAML is valid, every key is explained."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from llava_recipes.cli.main import COMMANDS, module_of
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Recipe, Stage
from tests.processes import llava_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md")
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base")
GUIDE = ROOT / "docs" / "guide.md"

SMALLEST = {
    "version": 1,
    "name": "smallest",
    "model": {"language_model": "some/model", "vision_tower": {"source": "some/tower"}},
    "stages": [
        {
            "name": "pretrain",
            "trainable": ["projector"],
            "data": {"template": "plain", "sources": [{"annotations": "a.json", "images": "images"}]},
            "train": {"max_steps": 1, "learning_rate": 1e-3},
            "output_dir": "out",
        }
    ],
}


class Block(NamedTuple):
    """A fenced block of a document."""

    document: Path
    language: str
    text: str

    def __str__(self) -> str:
        first_line = self.text.strip().splitlines()[0]
        return f"{self.document.name}: {first_line}"


def _blocks(document: Path) -> Iterator[Block]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```", document.read_text("utf-8"), re.S | re.M):
        yield Block(document, language, text)


BLOCKS = [block for document in DOCUMENTS for block in _blocks(document)]
FULL_RECIPES = [block for block in BLOCKS if block.language == "yaml" and block.text.startswith("version:")]
# Fragments of generated documents are held by the test of what makes them.
BY_HAND = [block for block in BLOCKS if not block.document.read_text("utf-8").startswith("<!-- Generated")]
FRAGMENTS = [
    block
    for block in BY_HAND
    if block.language == "yaml" and not block.text.startswith(("version:", "# yaml-language", "# broken"))
]


def _command_lines() -> list[str]:
    """Every `llava-recipe …` in a block of a document, and in the heads of the recipes."""
    lines = [line for block in BLOCKS if block.language != "yaml" for line in block.text.splitlines()]
    lines += [
        line for recipe in RECIPES for line in recipe.read_text("utf-8").splitlines() if line[:1] == "#"
    ]
    found = (re.search(r"(?:^|[\s$])(llava-recipe \S.*)$", line) for line in lines)
    return sorted({match[1] for match in found if match})


def _inline_commands() -> list[str]:
    texts = [
        re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.S | re.M) for document in DOCUMENTS
    ]
    return sorted({found for text in texts for found in re.findall(r"`llava-recipe ([^`]+)`", text)})


def _parser(command: str) -> argparse.ArgumentParser:
    assert command in COMMANDS
    parser = argparse.ArgumentParser(prog=command, allow_abbrev=False)
    importlib.import_module(module_of(command)).add_arguments(parser)
    return parser


def test_there_is_something_to_check() -> None:
    assert len(_command_lines()) >= 5
    assert _inline_commands()
    assert FULL_RECIPES
    assert len(FRAGMENTS) >= 10
    assert RECIPES


@pytest.mark.parametrize("line", _command_lines())
def test_a_command_line_parses_and_its_files_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    _parser(words[1]).parse_intermixed_args(words[2:])
    written = [word for before, word in pairwise(words) if before == "-o"]
    read = [word for word in words if word.endswith(".yaml") and word not in ("broken.yaml", *written)]
    assert [word for word in read if not (ROOT / word).is_file()] == []


@pytest.mark.parametrize("text", _inline_commands())
def test_a_command_in_a_sentence_exists(text: str) -> None:
    words = text.split()
    options = {option for action in _parser(words[0])._actions for option in action.option_strings}
    assert {word for word in words if word.startswith("-")} <= options


def test_make_targets_exist() -> None:
    texts = "\n".join(document.read_text("utf-8") for document in DOCUMENTS)
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", texts, re.M))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert {"demo", "test"} <= named <= targets


def test_links_lead_to_files() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text("utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), (document, target)


def test_anchors_lead_to_headings() -> None:
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        headings = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.+)$", text, re.M)
        }
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


@pytest.mark.parametrize("block", FULL_RECIPES, ids=str)
def test_a_whole_recipe_in_a_document_is_valid(block: Block, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(ROOT / "recipes" / "base")
    file = tmp_path / "recipe.yaml"
    file.write_text(block.text, "utf-8")
    assert load_recipe(str(file)).recipe.stages


@pytest.mark.parametrize("block", FRAGMENTS, ids=str)
def test_a_fragment_fits_into_a_recipe(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key of a fragment goes where a recipe has it, over a smallest recipe."""
    monkeypatch.setenv("DATA_DIR", "/data")
    places: dict[str, tuple[str | int, ...]] = {"env": (), "vars": (), "model": ()}
    places |= dict.fromkeys(Stage.model_fields, ("stages", 0))
    values = yaml.safe_load(yaml.safe_dump(SMALLEST))
    root = yaml.compose(block.text)
    assert isinstance(root, yaml.MappingNode)
    for key, value in root.value:
        target = values
        for step in places.get(key.value, ("model",)):
            target = target[step]
        target[key.value] = yaml.safe_load(yaml.serialize(value))
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    assert load_recipe(str(file)).recipe.stages


def test_a_broken_recipe_says_what_the_guide_shows(tmp_path: Path) -> None:
    (broken,) = [block for block in BLOCKS if block.text.startswith("# broken.yaml")]
    (shown,) = [block for block in BLOCKS if block.text.startswith("$ llava-recipe validate broken.yaml")]
    (tmp_path / "broken.yaml").write_text(broken.text, "utf-8")
    done = llava_recipe("validate", "broken.yaml", cwd=tmp_path, fresh=True)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).strip() == shown.text.partition("\n")[2].strip()


def test_the_guide_explains_every_key() -> None:
    schema = Recipe.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    keys = {key for model in models for key in model.get("properties", {})}
    assert len(keys) > 60
    text = GUIDE.read_text("utf-8")
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", text)) == []
