"""The documents keep their word: commands parse, files exist, YAML is valid, every key is explained."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from llava_recipes.cli.demo import NUM_HELD_OUT, NUM_UNSEEN
from llava_recipes.cli.main import COMMANDS, main, module_of
from llava_recipes.deepspeed_presets import DEEPSPEED_PRESETS
from llava_recipes.demo.drawn_data import all_combinations, unseen_combinations
from llava_recipes.layouts import LAYOUTS
from llava_recipes.projectors import PROJECTOR_TYPES
from llava_recipes.recipe.load import load_recipe
from llava_recipes.recipe.schema import Recipe, Stage, Train
from tests.laws import LONG
from tests.processes import llava_recipe, run_process

ROOT = Path(__file__).parent.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md")
RECIPES = sorted(file for file in (ROOT / "recipes").rglob("*.yaml") if file.parent.name != "base")
README = ROOT / "README.md"
START = ROOT / "docs" / "start.md"
BENCHMARKS = ROOT / "benchmarks" / "README.md"

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
    found = (re.search(r"(?:^|[\s$])(llava-recipe \S.*?)(?: > \S+)?$", line) for line in lines)
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
    read = [
        word
        for word in words
        if word.endswith(".yaml") and word not in ("align.yaml", "broken.yaml", *written)
    ]
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


def _headings(document: Path) -> set[str]:
    """The anchors of a document, as GitHub and the site make them of its headings; none may occur twice."""
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.S | re.M)
    headings = [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text, re.M)
    ]
    assert len(headings) == len(set(headings)), document
    return set(headings)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", document.read_text("utf-8"))
    for name, _, anchor in (link.partition("#") for link in links if not link.startswith("https://")):
        target = document.parent / name if name else document
        assert target.is_file(), (document, name)
        assert not anchor or anchor in _headings(target), (document, name, anchor)
        # The site is made of docs/ alone.
        assert document.parent != ROOT / "docs" or target.parent == document.parent, (document, name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_a_python_file_in_a_sentence_exists(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text("utf-8"), flags=re.S | re.M)
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", text))
    assert [
        name for name in named if not any((ROOT / at / name).is_file() for at in ("", "llava_recipes"))
    ] == []


def test_the_site_has_every_page() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    pages = re.findall(r"[\w-]+\.md", json.dumps(nav))
    assert sorted(pages) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("properdocs", reason="the extra `docs` is not installed: make docs")
    command = [
        sys.executable,
        "-m",
        "properdocs",
        "build",
        "--strict",
        "-f",
        "mkdocs.yml",
        "-d",
        str(tmp_path),
    ]
    done = run_process(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").is_file()


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


def _claim(pattern: str, document: Path = README) -> tuple[str, ...]:
    """What a document says in words of this shape; it must say so once."""
    (found,) = re.finditer(pattern, " ".join(document.read_text("utf-8").split()))
    return found.groups()


def test_the_documents_name_the_versions_that_are_allowed() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    pythons = _claim(r"With Python (\S+) to (\S+) on Linux")
    torch, transformers = _claim(r"torch (\S+) and transformers (\S+) are the oldest", START)
    assert _claim(r"Python (\S+) to (\S+) \(on", START) == pythons
    assert wanted["requires-python"] == f">={pythons[0]}"
    newest = [text for text in wanted["classifiers"] if "Python :: 3." in text][-1]
    assert newest.endswith(f":: {pythons[1]}")
    lowest = {
        text.partition(">=")[0]: text.partition(">=")[2].split(",")[0] for text in wanted["dependencies"]
    }
    assert (lowest["torch"], lowest["transformers"]) == (torch, transformers)


def test_the_claims_name_the_demos_images_and_its_chance() -> None:
    num_new, chance = _claim(r"of (\d+) new images \(chance ([\d.]+) %\)", BENCHMARKS)
    (num_unseen,) = _claim(r"of (\d+) images whose combination", BENCHMARKS)
    assert (int(num_new), int(num_unseen)) == (NUM_HELD_OUT, NUM_UNSEEN)
    num_seen = len(all_combinations()) - len(unseen_combinations())
    assert f"{100 / num_seen:.1f}" == chance


def _claimed_shares() -> tuple[float, float, float]:
    """The claimed bounds on the demo's scores, in percent: the least of the new, and two of the unseen."""
    (least,) = _claim(r"on more than (\d+) % of \d+ new images", BENCHMARKS)
    low, high = _claim(r"on (\d+) to (\d+) % of \d+ images whose", BENCHMARKS)
    return float(least), float(low), float(high)


def test_what_was_measured_of_the_demo_is_within_the_claimed_bounds() -> None:
    text = BENCHMARKS.read_text("utf-8").partition("## The demo\n")[2]
    rows = re.findall(r"^\|[^|]+\| ([\d.]+) \| ([\d.]+) \|$", text.partition("\n## ")[0], re.M)
    least, low, high = _claimed_shares()
    assert len(rows) >= 5
    assert [row for row in rows if not (float(row[0]) > least and low <= float(row[1]) <= high)] == []


def test_the_time_of_the_demo_is_the_measured_one() -> None:
    seconds = _claim(r"The whole demo took (\d+) s .*? up to (\d+) s", BENCHMARKS)
    for document in (README, START):
        least, most = map(int, _claim(r"(\d+) to (\d+) minutes on two cores", document))
        assert 60 * least <= int(seconds[0]) and int(seconds[1]) <= 60 * most


@pytest.mark.skipif(not LONG, reason="the whole demo takes minutes: make test-long")
def test_the_demo_scores_what_is_claimed(tmp_path: Path) -> None:
    done = llava_recipe("demo", f"--data={tmp_path / 'data'}", f"--out={tmp_path / 'runs'}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = json.loads((tmp_path / "runs" / "score.json").read_text("utf-8"))
    last = [score["after"]["finetune"] for score in scores]
    new, unseen = (100 * each["num_both"] / each["num_images"] for each in last)
    least, low, high = _claimed_shares()
    assert new > least
    assert low <= unseen <= high


def test_the_readme_names_the_exit_codes_of_a_run_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    fixed, usage = _claim(r"Exit codes: 0 success, (\d) something that you can fix .*?, (\d) wrong usage")
    assert main(["validate", "nothing.yaml"]) == int(fixed)
    assert "nothing.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["validate", "--nothing"])
    assert ended.value.code == int(usage)


def test_the_readme_names_the_layouts_of_an_export() -> None:
    parts = re.findall(r"`([\w-]+)`", _claim(r"\| write (.*?), compared with the run")[0])
    (layouts,) = [action.choices for action in _parser("export")._actions if "--to" in action.option_strings]
    assert layouts and set(layouts) <= set(parts)


def _shown(command: str) -> str:
    """What a document shows under a command."""
    (block,) = [block for block in BLOCKS if block.text.startswith(f"$ {command}\n")]
    return block.text.partition("\n")[2].strip()


def _printed(command: str, folder: Path) -> tuple[int, str]:
    done = llava_recipe(*shlex.split(command)[1:], cwd=folder, fresh=True)
    return done.returncode, (done.stdout + done.stderr).strip()


def test_the_readmes_recipe_has_the_plan_and_the_error_that_are_shown(tmp_path: Path) -> None:
    (recipe,) = [block.text for block in FULL_RECIPES if block.document == README]
    assert len(recipe.splitlines()) == 12
    (tmp_path / "align.yaml").write_text(recipe, "utf-8")
    command = "llava-recipe plan align.yaml --world-size 8"
    shown, more = _shown(command).rsplit("\n", 1)
    assert more == "…"
    code, printed = _printed(command, tmp_path)
    assert (code, printed[: len(shown)]) == (0, shown)
    wrong = recipe.replace("[projector]", "[multi_modal_projector]")
    (tmp_path / "align.yaml").write_text(wrong, "utf-8")
    command = "llava-recipe validate align.yaml"
    assert _printed(command, tmp_path) == (1, _shown(command))


def test_a_broken_recipe_says_what_the_guide_shows(tmp_path: Path) -> None:
    (broken,) = [block for block in BLOCKS if block.text.startswith("# broken.yaml")]
    (tmp_path / "broken.yaml").write_text(broken.text, "utf-8")
    command = "llava-recipe validate broken.yaml"
    assert _printed(command, tmp_path) == (1, _shown(command))


def _first_column(document: str, head: str) -> set[str]:
    """The names in the first column of the one table of a document that starts with this head."""
    text = (ROOT / "docs" / document).read_text("utf-8")
    (table,) = re.findall(rf"^\| {head} \|.*\n((?:\|.*\n)+)", text, re.M)
    return {name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_guide_has_a_row_for_every_addition() -> None:
    """The tables that docs/CONTRIBUTING.md names: what is added to the package has a row there."""
    types = {each.name for each in PROJECTOR_TYPES}
    assert types == _first_column("recipes.md", "type")
    assert set(LAYOUTS) == _first_column("data.md", "`template`")
    assert set(DEEPSPEED_PRESETS) <= _first_column("training.md", "preset")
    assert set(Train.model_fields) <= _first_column("training.md", "key")
    text = (ROOT / "docs" / "commands.md").read_text("utf-8").partition("\n## ")[0]
    rows = "\n".join(row.split("|")[1] for row in text.splitlines() if row.startswith("|"))
    assert set(COMMANDS) == set(re.findall(r"`llava-recipe ([\w-]+)", rows))


ERRORS_SHOWN = sorted(
    block.text.partition("\n")[0].removeprefix("$ ")
    for block in BLOCKS
    if block.text.startswith("$ llava-recipe validate tests/errors/")
)


def test_the_guide_shows_errors() -> None:
    assert len(ERRORS_SHOWN) >= 2


@pytest.mark.parametrize("command", ERRORS_SHOWN)
def test_an_error_of_a_test_is_printed_as_the_guide_shows_it(command: str) -> None:
    assert _printed(command, ROOT)[1] == _shown(command)


def test_the_guide_explains_every_key() -> None:
    schema = Recipe.model_json_schema()
    models = [schema, *schema["$defs"].values()]
    keys = {key for model in models for key in model.get("properties", {})}
    assert len(keys) > 60
    by_hand = {block.document for block in BY_HAND if block.document.parent == ROOT / "docs"}
    text = "\n".join(document.read_text("utf-8") for document in by_hand)
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", text)) == []
