"""`llava-recipe new`: from flags, from the data, and from answers on a real terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llava_recipes.authoring.new_recipe import TEMPLATES
from llava_recipes.cli.main import main
from llava_recipes.recipe.load import load_recipe
from tests.processes import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent
TURNS = [{"from": "human", "value": "<image>\nDescribe."}, {"from": "gpt", "value": "a cat"}]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with captions and their pictures."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    records = [{"id": str(index), "image": f"{index}.jpg", "conversations": TURNS} for index in range(4)]
    (tmp_path / "captions.json").write_text(json.dumps(records), encoding="utf-8")
    for index in range(4):
        (tmp_path / "pictures" / f"{index}.jpg").touch()
    return tmp_path


def test_a_data_file_with_a_name_that_no_file_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "pretrain", "--yes", "--data", "x" * 300]) == 1
    assert "a name in `annotations` is longer than a file name can be" in capsys.readouterr().err


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_gives_a_recipe(template: str, elsewhere: Path) -> None:
    assert main(["new", template, "--yes"]) == 0
    assert main(["validate", f"{template}.yaml"]) == 0
    assert not list(elsewhere.glob(".*"))


def test_flags_and_data_are_filled_in(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--llm",
        "lmsys/vicuna-13b-v1.5",
        "--tower",
        "openai/clip-vit-large-patch14",
        "--output-dir",
        "./out",
    ]
    data = ["--data", "captions.json", "--set", "stages.pretrain.train.learning_rate=2e-3"]
    assert main(["new", "pretrain", "-o", "mine.yaml", *words, *data]) == 0
    recipe = load_recipe("mine.yaml").recipe
    stage = recipe.stages[0]
    assert recipe.name == "mine"
    assert recipe.model.language_model == "lmsys/vicuna-13b-v1.5"
    assert recipe.model.vision_tower.source == "openai/clip-vit-large-patch14"
    assert (stage.output_dir, stage.train.learning_rate, stage.data.template) == ("./out", 2e-3, "plain")
    source = stage.data.sources[0]
    assert source.images is not None
    assert (source.annotations, Path(source.images), source.num_samples) == (
        "captions.json",
        Path("pictures"),
        4,
    )
    printed = capsys.readouterr()
    assert "4 records" in printed.out and "4 of 4 images" in printed.out
    assert "wrote    mine.yaml" in printed.out
    # Four samples are less than one step of the template's 256.
    assert stage.train.global_batch_size == 2 and "warning" not in printed.err


def test_standard_output_holds_the_recipe_alone(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(elsewhere.iterdir())
    assert main(["new", "tiny", "-o", "-", "--data", "captions.json"]) == 0
    printed = capsys.readouterr()
    assert sorted(elsewhere.iterdir()) == before
    assert "saw" in printed.err and "saw" not in printed.out
    (elsewhere / "out.yaml").write_text(printed.out, encoding="utf-8")
    assert load_recipe("out.yaml").recipe.name == "tiny"


def test_nothing_is_written_over(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = elsewhere / "tiny.yaml"
    file.write_text("mine", encoding="utf-8")
    assert main(["new", "tiny"]) == 1
    assert file.read_text(encoding="utf-8") == "mine"
    assert "--force" in capsys.readouterr().err
    assert main(["new", "tiny", "--force"]) == 0
    assert "name: tiny" in file.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "stages.0.train.learning_rate=fast"], "x.yaml:"),
        (["--set", "stages.0.train.learnin_rate=1"], "did you mean `learning_rate`?"),
        (["--set", "stages.0.trainable=[projektor]"], "projektor"),
        (["--data", "pictures"], "pictures"),
        (["--data", "pictures/0.jpg"], "the annotation file is empty"),
        (["--images", "pictures"], "`--images` needs `--data`"),
        (["--llm", "http://example.com/model"], "x.yaml:"),
    ],
)
def test_a_recipe_with_an_error_is_not_written(
    words: list[str], message: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "pretrain", "-o", "x.yaml", *words]) == 1
    assert message in capsys.readouterr().err
    assert not (elsewhere / "x.yaml").exists()


def test_off_a_terminal_the_template_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new"]) == 2
    assert "pretrain, finetune, lora, qlora, task, tiny, custom" in capsys.readouterr().err


def test_with_yes_the_default_template_is_taken(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "--data", "captions.json", "--yes"]) == 0
    assert capsys.readouterr().out.startswith("template pretrain, the default\n")
    assert (elsewhere / "pretrain.yaml").exists()


@pytest.mark.parametrize(("option", "what"), [("--llm", "language model"), ("--tower", "vision tower")])
def test_a_model_is_not_a_file(
    option: str, what: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new", "pretrain", "--yes", option, "captions.json"]) == 1
    assert f"a {what} is a hub id or a folder; captions.json is a file" in capsys.readouterr().err
    assert not (elsewhere / "pretrain.yaml").exists()


def test_a_template_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["new", "quora"])
    assert stopped.value.code == 2
    assert "'pretrain'" in capsys.readouterr().err


def _on_a_terminal(folder: Path, words: Sequence[str], answers: bytes) -> tuple[int, str]:
    """Run the command on a pseudo-terminal, type the answers, give exit code and screen."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "llava_recipes", "new", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, answers)
    screen, deadline_s = b"", time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        screen += piece
    code = process.wait(timeout=TIMEOUT_S)
    os.close(ours)
    return code, screen.decode("utf-8", "replace")


def test_a_terminal_is_asked_for_what_is_open(elsewhere: Path) -> None:
    answers = b"tiny\n\nopenai/clip-vit-large-patch14\ncaptions.json\n\nasked.yaml\n"
    code, screen = _on_a_terminal(elsewhere, [], answers)
    assert code == 0, screen
    recipe = load_recipe("asked.yaml").recipe
    assert recipe.model.vision_tower.source == "openai/clip-vit-large-patch14"
    assert recipe.stages[0].data.sources[0].num_samples == 4
    assert "language model" in screen


def test_what_is_given_is_not_asked_for(elsewhere: Path) -> None:
    words = ["pretrain", "--llm", "lmsys/vicuna-7b-v1.5", "--data", "captions.json", "-o", "given.yaml"]
    code, screen = _on_a_terminal(elsewhere, words, b"\n")
    assert code == 0, screen
    assert "language model" not in screen and "data file" not in screen
    assert "vision tower" in screen
    assert load_recipe("given.yaml").recipe.model.vision_tower.source == "openai/clip-vit-large-patch14-336"


def test_a_taken_name_is_asked_for_again(elsewhere: Path) -> None:
    (elsewhere / "tiny.yaml").write_text("mine", encoding="utf-8")
    code, screen = _on_a_terminal(elsewhere, ["tiny"], b"\n\n\n\nother.yaml\n")
    assert code == 0, screen
    assert "already exists" in screen
    assert (elsewhere / "tiny.yaml").read_text(encoding="utf-8") == "mine"
    assert (elsewhere / "other.yaml").is_file()


def test_a_question_can_be_left(elsewhere: Path) -> None:
    code, screen = _on_a_terminal(elsewhere, ["tiny"], b"\x04")
    assert code == 130, screen
    assert "interrupted" in screen and "Traceback" not in screen
    assert not (elsewhere / "tiny.yaml").exists()


@pytest.mark.parametrize("num_records", [1, 2, 3, 16, 24, 100, 1000, 3000])
@pytest.mark.parametrize("template", ["pretrain", "finetune", "lora", "task", "tiny"])
def test_what_is_written_suits_the_records(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], template: str, num_records: int
) -> None:
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a cat"}]
    record = {"image": "0.jpg", "conversations": turns}
    (elsewhere / "many.json").write_text(json.dumps([record] * num_records), encoding="utf-8")
    words = ["--data", "many.json", "--images", "pictures", "-o", "mine.yaml"]
    assert main(["new", template, *words]) == 0
    printed = capsys.readouterr().err
    for key in ("warmup_ratio", "global_batch_size", "per_device_train_batch_size", "save_steps"):
        assert key not in printed
    train = load_recipe("mine.yaml").recipe.stages[0].train
    batch = train.global_batch_size or train.per_device_train_batch_size
    assert batch <= num_records and batch % train.per_device_train_batch_size == 0


def test_a_batch_that_was_given_stays(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", "stages.0.train.global_batch_size=64", "--set", "stages.0.train.warmup_ratio=0.1"]
    assert main(["new", "pretrain", "-o", "mine.yaml", "--data", "captions.json", *words]) == 0
    train = load_recipe("mine.yaml").recipe.stages[0].train
    assert (train.global_batch_size, train.per_device_train_batch_size, train.warmup_ratio) == (64, 32, 0.1)
    assert "64 samples in a step, 4 in an epoch" in capsys.readouterr().err
