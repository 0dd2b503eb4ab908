"""Whatever data holds, nothing that steers a terminal, Rich or GitHub leaves any command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from llava_recipes.cli.main import COMMANDS
from tests.processes import llava_recipe, python
from tests.terminal import HOSTILE, PRINTABLE, as_file_name, on_terminal, steering
from tests.tiny import FIXTURES, stage1_values

FILE = as_file_name(HOSTILE)
TEXT = as_file_name(PRINTABLE)
"""For paths inside a recipe."""


@dataclass(frozen=True)
class Place:
    """Recipes and data that are hostile wherever they can be."""

    folder: Path
    good: Path
    plain: Path
    other: Path
    wrong: Path
    script: Path
    run: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("hostile")
    data = folder / TEXT
    shutil.copytree(FIXTURES / "images", data / "images")
    image = next(path for path in sorted((FIXTURES / "images").iterdir()) if path.is_file())
    shutil.copy(image, data / "images" / f"{FILE}.png")
    record = {
        "id": HOSTILE,
        "image": f"{FILE}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\n{HOSTILE}"},
            {"from": "gpt", "value": HOSTILE},
        ],
    }
    broken = {**record, "image": f"none{FILE}.png"}
    (data / f"{TEXT}.json").write_text(json.dumps([record] * 6 + [broken]))
    (data / "good.json").write_text(json.dumps([record] * 6))
    values = stage1_values(folder)
    (stage,) = values["stages"]
    stage["data"] |= {
        "template": "v1",
        "sources": [{"annotations": f"{TEXT}/good.json", "images": f"{TEXT}/images"}],
    }
    stage["output_dir"] = f"./out[/nope]{TEXT}"
    stage["train"] |= {"max_steps": 2}
    del stage["train"]["num_train_epochs"]
    files: dict[str, Path] = {}
    sources = [{"annotations": f"{TEXT}/{TEXT}.json", "images": f"{TEXT}/images"}]
    changed: dict[str, dict[str, object]] = {
        f"good{FILE}": {"sample_every": 1, "samples": {"num": 1, "max_new_tokens": 3}},
        f"plain{FILE}": {},
        "other": {"data": {**stage["data"], "sources": sources}},
        "wrong": {"name": HOSTILE, "freeze": HOSTILE, "lora": {HOSTILE: HOSTILE}, "init_from": HOSTILE},
    }
    for name, changes in changed.items():
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump({**values, "stages": [{**stage, **changes}]}))
    script = folder / f"{FILE}.sh"
    script.write_text(
        f"# {HOSTILE}\ndeepspeed llava/train/train_mem.py --version plain --model_name_or_path a/b \\\n"
        f"  --vision_tower c/d --data_path '{TEXT}.json' --image_folder '{TEXT}' --unknown '{TEXT}' \\\n"
        f"  --tune_mm_mlp_adapter True --output_dir './{TEXT}' --per_device_train_batch_size 2\n"
    )
    good, plain, other, wrong = files.values()
    return Place(folder, good, plain, other, wrong, script, folder / stage["output_dir"])


CALLS: dict[str, list[list[str]]] = {
    "validate": [
        ["GOOD", "PLAIN", "OTHER", "WRONG", FILE],
        ["--format", "json", "GOOD", "WRONG"],
        ["--format", "github", "GOOD", "WRONG"],
        ["--format", "sarif", "GOOD", "WRONG"],
        ["--deep", "--all", "OTHER"],
        ["GOOD", "--set", HOSTILE.replace("\0", "")],
        [f"--{FILE}"],
    ],
    "plan": [
        ["GOOD", "--show-config"],
        ["GOOD", "--json"],
        ["GOOD", "--html", f"page{FILE}.html", "--force"],
        ["GOOD", "--gpu", FILE],
    ],
    "show": [["GOOD"], ["GOOD", "--origin"], ["WRONG"]],
    "diff": [["GOOD", "OTHER"], ["GOOD", "OTHER", "--json"]],
    "preview": [
        ["GOOD"],
        ["OTHER", "--samples", "5:7"],
        ["GOOD", "--format", "jsonl"],
        ["GOOD", "--stage", FILE],
    ],
    "schema": [[FILE]],
    "new": [
        ["pretrain", "--yes", "-o", "-", "--data", f"{TEXT}/{TEXT}.json", "--images", TEXT],
        ["pretrain", "--yes", "-o", FILE, "--force", "--llm", PRINTABLE, "--output-dir", TEXT],
    ],
    "list": [[FILE]],
    "copy": [[FILE], ["demo", "--force", "-o", f"copy{FILE}.yaml"]],
    "explain": [[FILE]],
    "migrate": [["SCRIPT"], ["SCRIPT", "--strict", "--var", FILE], [FILE]],
    "export-script": [["PLAIN"], ["WRONG"]],
    "completion": [[FILE]],
    "demo": [["--recipe", "WRONG"]],
    "run": [
        ["GOOD"],
        ["GOOD"],
        ["GOOD", "--set", "stages.0.train.learning_rate=2e-3"],
        ["GOOD", "--stage", FILE],
    ],
    "slurm": [
        ["GOOD", "--gpus-per-node", "1"],
        ["WRONG", "--gpus-per-node", "1", "--partition", FILE],
        ["PLAIN", "--gpus-per-node", "1", "-o", f"job{FILE}", "--force", "--sbatch", f"comment={PRINTABLE}"],
    ],
    "chat": [["RUN", HOSTILE.replace("\0", ""), "--image", f"{TEXT}/images/{FILE}.png"], [FILE]],
    "generate": [
        ["RUN", "--input", f"{TEXT}/good.json", "--images", f"{TEXT}/images", "-o", f"a{FILE}", "--overwrite"]
    ],
    "eval": [
        ["RUN", "--data", f"{TEXT}/good.json", "--images", f"{TEXT}/images", "--limit", "1", "--overwrite"]
    ],
    "export": [["RUN", "--to", "hf", "-o", f"NEW{FILE}"], [FILE, "--to", "llava"]],
    "import": [[f"NEW{FILE}", "-o", f"IMPORTED{FILE}"]],
    "merge": [["RUN", "-o", f"merged{FILE}"]],
}
"""In an order in which each finds what it needs; capitals stand for the files of a `Place`."""


def test_every_command_is_called() -> None:
    assert set(CALLS) == set(COMMANDS)


TRAINS_OR_LOADS = ("demo", "run", "chat", "generate", "eval", "export", "import", "merge")
"""Commands that import torch, and need the run that `run` leaves."""


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_nothing_steers_who_reads_of_recipes(place: Place, terminal: bool) -> None:
    commands = [command for command in CALLS if command not in TRAINS_OR_LOADS]
    num_calls, num_shown = _call(place, commands, terminal)
    # Nothing is kept away by saying nothing: most calls quote what they were given.
    assert num_calls >= 25
    assert num_shown >= 20
    page = place.folder / f"page{FILE}.html"
    assert not steering(page.read_text("utf-8"), obeys=False)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_nothing_steers_who_reads_of_runs(place: Place, terminal: bool) -> None:
    shutil.rmtree(place.run, ignore_errors=True)
    num_calls, num_shown = _call(place, TRAINS_OR_LOADS, terminal)
    assert num_calls >= 12
    assert num_shown >= 10
    card = place.folder / f"NEW{FILE}{terminal}" / "README.md"
    assert not steering(card.read_text("utf-8"), obeys=False)


def _call(place: Place, commands: Sequence[str], terminal: bool) -> tuple[int, int]:
    """Make the calls of commands; gives how many there were, and how many showed something hostile."""
    num_calls = num_shown = 0
    for argv in ([command, *words] for command in commands for words in CALLS[command]):
        code, texts = _speak([_file(place, word, terminal) for word in argv], place.folder, terminal)
        said = f"{argv!a}: exit code {code}\n{texts!a}"
        assert code in (0, 1, 2), said
        for text in texts:
            assert not steering(text, terminal=terminal, obeys=not terminal and "github" not in argv), said
        if not terminal and {"json", "jsonl", "sarif", "--json"} & {*argv}:
            assert isinstance(_first_value(texts[0]), dict), said
        num_calls += 1
        num_shown += any("PWN" in text for text in texts)
    return num_calls, num_shown


def _first_value(text: str) -> object:
    """The JSON value that a text begins with, which may be one line of several; None for no JSON."""
    try:
        return json.JSONDecoder().raw_decode(text)[0]
    except ValueError:
        return None


def _file(place: Place, word: str, terminal: bool) -> str:
    if word.startswith(("NEW", "IMPORTED")):
        return f"{word}{terminal}"
    files = {
        "GOOD": place.good,
        "PLAIN": place.plain,
        "OTHER": place.other,
        "WRONG": place.wrong,
        "SCRIPT": place.script,
        "RUN": place.run,
    }
    return str(files[word].relative_to(place.folder)) if word in files else word


def _speak(argv: Sequence[str], cwd: Path, terminal: bool) -> tuple[int, tuple[str, ...]]:
    if terminal:
        code, text = on_terminal([*python("llava_recipes"), *argv], cwd=cwd)
        return code, (text,)
    done = llava_recipe(*argv, cwd=cwd)
    return done.returncode, (done.stdout, done.stderr)
