"""Each kind of thing that is no ordinary file, in each place where a path may stand: refused, and at once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from llava_recipes.cli.main import main
from llava_recipes.data.images import BadImage, check_image
from llava_recipes.data.records import open_records
from llava_recipes.errors import RecipeError
from llava_recipes.model.checkpoint import open_tensor_file
from llava_recipes.model.starts import open_start
from llava_recipes.plan.data import every_record
from llava_recipes.recipe.foreign import check_model_folder
from llava_recipes.recipe.load import load_recipe
from llava_recipes.runner.facts import compile_loaded
from llava_recipes.runner.run_folder import find_obstacle
from llava_recipes.use.batches import check_place
from llava_recipes.use.questions import read_questions
from tests.images import read_image
from tests.tiny import FIXTURES, stage1_values, write_recipe

MOST_S = 120
"""Of a busy machine: what waits for a pipe waits for ever."""
SECRET = "S3CR3T"

Values = dict[str, Any]


@pytest.fixture(autouse=True)
def _limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"above {MOST_S} s")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", SECRET)
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _pipe(ending: str) -> str:
    os.mkfifo(f"pipe{ending}")
    return f"pipe{ending}"


def _socket(ending: str) -> str:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"socket{ending}")
    return f"socket{ending}"


def _link_to(target: str) -> Callable[[str], str]:
    def link(ending: str) -> str:
        os.symlink(target, f"link{ending}")
        return f"link{ending}"

    return link


def _link_to_pipe(ending: str) -> str:
    return _link_to(os.path.abspath(_pipe("")))(ending)


ODD: dict[str, Callable[[str], str]] = {
    "a pipe": _pipe,
    "a link to a pipe": _link_to_pipe,
    "a socket": _socket,
    "/dev/zero": lambda _: "/dev/zero",
    "a link to /dev/zero": _link_to("/dev/zero"),
    "/proc/self/environ": lambda _: "/proc/self/environ",
    "a link to /proc/kmsg": _link_to("/proc/kmsg"),
    "/proc/kmsg by another way": lambda _: "/proc/self/root/proc/kmsg",
    "/dev by dots": lambda _: "../" * 30 + "dev/full",
}


def _through_a_file(ending: str) -> str:
    Path("file").touch()
    return f"file/inside{ending}"


WRONG: dict[str, Callable[[str], str]] = {
    "a broken link": _link_to("nowhere"),
    "a link to itself": lambda ending: _link_to(f"link{ending}")(ending),
    "a path through a file": _through_a_file,
    "a name that is too long": lambda ending: "a" * 300 + ending,
    "a path that is too long": lambda ending: "a/" * 3000 + ending,
    "a name with NUL": lambda ending: f"a\0b{ending}",
    "nothing": lambda ending: "absent" + ending,
}


def _compile(values: Values) -> None:
    compile_loaded(load_recipe(str(write_recipe(values, Path("recipe.yaml")))), world_size=1)


def _in_recipe(change: Callable[[Values, str], object]) -> Callable[[str], None]:
    def try_out(path: str) -> None:
        values = stage1_values(Path("out"))
        change(values, path)
        _compile(values)

    return try_out


def _source(values: Values) -> Values:
    source: Values = values["stages"][0]["data"]["sources"][0]
    return source


def _validation(values: Values, path: str) -> None:
    values["stages"][0]["data"]["validation"] = {"sources": [{**_source(values), "annotations": path}]}


def _sampled(values: Values, path: str) -> None:
    values["stages"][0]["samples"] = {"images": [path]}
    values["stages"][0]["sample_every"] = 1


def _records(path: str) -> None:
    values = stage1_values(Path("out"))
    plan = compile_loaded(load_recipe(str(write_recipe(values, Path("recipe.yaml")))), world_size=1).plan
    source = plan.stages[0].data.sources[0].model_copy(update={"annotations": path})
    open_records([every_record(source)])


def _image(path: str) -> None:
    target = path if os.path.isabs(path) else os.path.abspath(path)
    os.makedirs("images", exist_ok=True)
    if os.path.lexists(target):
        os.symlink(target, "images/a.jpg")
    for read in (read_image, check_image):
        try:
            read(str(Path(target).parent), Path(target).name)
        except BadImage as error:
            raise RecipeError.of(error.reason, code="bad-image") from error


def _folder(path: str) -> None:
    shutil.copytree(FIXTURES / "tiny_vicuna", "model")
    os.remove("model/tokenizer_config.json")
    with contextlib.suppress(OSError, ValueError):
        os.symlink(os.path.abspath(path), "model/tokenizer_config.json")
    check_model_folder(Path("model"), ("model",))


def _obstacle(path: str) -> None:
    obstacle = find_obstacle(Path(path))
    if obstacle is not None:
        raise RecipeError.of(obstacle, code="no-output")


def _command(*words: str) -> Callable[[str], None]:
    def try_out(path: str) -> None:
        write_recipe(stage1_values(Path("out")), Path("recipe.yaml"))
        Path("script.sh").write_text(f"deepspeed llava/train/train_mem.py --deepspeed {path} --bf16 True\n")
        code = main([word.replace("PATH", path) for word in words])
        assert code == 1, code
        raise RecipeError.of("said by the command", code="by-command")

    return try_out


PLACES: dict[str, tuple[str, Callable[[str], None]]] = {
    "recipe": (".yaml", lambda path: _nothing(load_recipe(path))),
    "extends": (".yaml", lambda path: _extending({"extends": path})),
    "one of extends": (".yml", lambda path: _extending({"extends": [path]})),
    "annotations": (".json", _in_recipe(lambda root, path: _source(root).update(annotations=path))),
    "lines": (".jsonl", _in_recipe(lambda root, path: _source(root).update(annotations=path))),
    "Parquet": (".parquet", _in_recipe(lambda root, path: _source(root).update(annotations=path))),
    "validation": (".json", _in_recipe(_validation)),
    "images": ("", _in_recipe(lambda root, path: _source(root).update(images=path))),
    "samples": (
        ".jpg",
        _in_recipe(
            lambda root, path: _sampled(root, path)
        ),
    ),
    "deepspeed": (
        ".json",
        _in_recipe(lambda root, path: root["stages"][0].update(deepspeed=os.path.join(".", path))),
    ),
    "init_from": (".bin", _in_recipe(lambda root, path: root["stages"][0].update(init_from=path))),
    "projector": (".bin", _in_recipe(lambda root, path: root["model"]["projector"].update(init_from=path))),
    "language_model": ("", _in_recipe(lambda root, path: root["model"].update(language_model=path))),
    "tokenizer": (
        "",
        _in_recipe(
            lambda root, path: root["model"].update(
                language_model={"source": root["model"]["language_model"], "tokenizer": path}
            )
        ),
    ),
    "vision_tower": (
        "", _in_recipe(lambda root, path: root["model"]["vision_tower"].update(source=path))
    ),
    "output_dir": ("", _in_recipe(lambda root, path: root["stages"][0].update(output_dir=path))),
    "records": (".json", _records),
    "records in Parquet": (".parquet", _records),
    "an image": (".jpg", _image),
    "a file of a model": (".json", _folder),
    "questions": (".json", lambda path: _nothing(read_questions(path, images="."))),
    "weights": (".safetensors", lambda path: _nothing(open_tensor_file(Path(path), ()))),
    "a start": (".bin", lambda path: _nothing(open_start(path, ()))),
    "an output folder": ("", _obstacle),
    "answers": (".jsonl", lambda path: check_place(Path(path), resume=False, overwrite=True)),
    "migrate": (".sh", _command("migrate", "PATH")),
    "migrate -o": (".yaml", _command("migrate", "script.sh", "-o", "PATH", "--force")),
    "new -o": (
        ".yaml",
        _command("new", "lora", "--yes", "--force", "--data", str(FIXTURES / "stage1.json"), "-o", "PATH"),
    ),
    "new --data": (".json", _command("new", "lora", "--yes", "-o", "-", "--data", "PATH")),
    "plan --html": (".html", _command("plan", "recipe.yaml", "--html", "PATH", "--force")),
    "the page before": (".html", _command("plan", "recipe.yaml", "--html", "PATH")),
    "export-script -o": (
        ".sh",
        _command("export-script", "recipe.yaml", "--world-size", "1", "--force", "-o", "PATH"),
    ),
    "slurm -o": (".sh", _command("slurm", "recipe.yaml", "--gpus-per-node", "1", "--force", "-o", "PATH")),
    "diff": (".yaml", _command("diff", "recipe.yaml", "PATH")),
}  # fmt: skip

# Those that may be made yet.
MAY_BE_NEW = ("output_dir", "an output folder", "answers", "new -o", "migrate -o", "plan --html",
              "the page before", "export-script -o", "slurm -o", "new --data")  # fmt: skip


def _nothing(_: object) -> None:
    """What was opened is not needed."""


def _extending(values: Values) -> None:
    load_recipe(str(write_recipe(values, Path("child.yaml"))))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_ordinary_file_is_refused(
    place: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ending, try_out = PLACES[place]
    with pytest.raises(RecipeError) as caught:
        try_out(ODD[kind](ending))
    said = capsys.readouterr().err + "".join(
        f"{problem.message} {problem.found}" for problem in caught.value.problems
    )
    assert "ordinary file" in said or place in ("an output folder", "an image", "a file of a model"), said
    assert SECRET not in said


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("place", PLACES)
def test_what_cannot_be_opened_is_a_problem(place: str, kind: str) -> None:
    ending, try_out = PLACES[place]
    try:
        try_out(WRONG[kind](ending))
    except RecipeError as error:
        assert error.problems
    except AssertionError:
        if place not in MAY_BE_NEW:
            raise


@pytest.mark.parametrize(
    "words", [["chat", "RUN", "hi"], ["export", "RUN", "--to", "hf"], ["import", "RUN", "-o", "x"]]
)
def test_a_home_of_nobody_is_a_place_that_is_missing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = "~nobody-of-this-name/run"
    assert main([run if word == "RUN" else word for word in words]) == 1
    assert capsys.readouterr().err.startswith(f"{run}: no such folder\n")


def test_too_little_memory_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("llava_recipes.cli.validate._examine", fail)
    assert main(["validate", "recipe.yaml"]) == 1
    assert capsys.readouterr().err == "llava-recipe validate: not enough memory\n"


def test_names_beyond_the_locale_are_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        "é".encode("ascii")

    monkeypatch.setattr("llava_recipes.cli.validate._examine", fail)
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert main(["validate", "recipe.yaml"]) == 1
    assert "this locale can't encode 'é' in a file name" in capsys.readouterr().err
