"""A disk that takes nothing more is the user's to fix: what was not written, what stands, what to do."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import replacing, write_text
from llava_recipes.runner import write_failure
from llava_recipes.runner.write_failure import reporting_write_failures, write_problem
from tests.faults.disk import Failure, attempt, can_mount

STAGE = ("stages", 1)


def problem_of(error: BaseException, folder: Path) -> Problem | None:
    return write_problem(error, folder=folder, stage=STAGE)


def failed(number: int, file: Path | None = None) -> OSError:
    return OSError(number, os.strerror(number), *([] if file is None else [str(file)]))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_what_no_reading_fails_with_needs_no_name(number: int, tmp_path: Path) -> None:
    found = problem_of(failed(number), tmp_path)
    assert found is not None
    assert found.message.startswith("the run folder cannot be written: ")
    assert found.code == "output-cannot-be-written"
    assert found.path == ("stages", 1, "output_dir")
    assert "no checkpoint was saved before" in (found.found or "")


def test_memory_that_processes_share_is_no_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_failure, "_is_full", lambda folder: str(folder) == "/dev/shm")
    found = problem_of(failed(errno.ENOSPC), tmp_path)
    assert found is not None and found.hint is not None
    assert found.message.startswith("/dev/shm cannot be written") and "--shm-size" in found.hint


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_what_reading_may_fail_with_is_ours_in_our_folder_only(number: int, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = problem_of(failed(number, run / ".metrics.jsonl.abcd_123"), run)
    assert found is not None
    assert found.message.startswith("metrics.jsonl cannot be written: ")
    assert problem_of(failed(number, tmp_path / "images" / "a.jpg"), run) is None
    assert problem_of(failed(number), run) is None


def test_a_removed_folder_is_said_to_be_gone(tmp_path: Path) -> None:
    assert problem_of(failed(errno.ENOENT, tmp_path / "some.json"), tmp_path) is None
    found = problem_of(failed(errno.ENOENT, tmp_path / "run" / "metrics.jsonl"), tmp_path / "run")
    assert found is not None
    assert found.message == "metrics.jsonl cannot be written: its folder was removed"


def test_the_newest_checkpoint_stands(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "checkpoint.json").write_text(json.dumps({}))
    found = problem_of(failed(errno.ENOSPC, tmp_path / ".saving-checkpoint-6" / "random.json"), tmp_path)
    assert found is not None
    assert found.message == "checkpoint-6 cannot be written: the disk is full"
    assert "checkpoint-4 stands" in (found.found or "")
    assert (found.hint or "").endswith("`--resume` then continues from checkpoint-4")


def test_causes_are_looked_at(tmp_path: Path) -> None:
    try:
        try:
            raise failed(errno.ENOSPC)
        except OSError as error:
            raise ValueError("something else") from error
    except ValueError as error:
        assert problem_of(error, tmp_path) is not None
    assert problem_of(ValueError("something else"), tmp_path) is None
    # What was said already stays as it is.
    said = RecipeError.of("said", code="said")
    said.__context__ = failed(errno.ENOSPC)
    assert problem_of(said, tmp_path) is None


def test_libraries_say_it_in_their_own_way(tmp_path: Path) -> None:
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    torchs = RuntimeError(
        "[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed writing file"
    )
    for error, words in ((full, "the disk is full"), (torchs, "the disk reports an error")):
        with pytest.raises(RecipeError, match=f"a.bin cannot be written: {words}"):  # noqa: SIM117
            with reporting_write_failures(tmp_path, stage=STAGE), replacing(tmp_path / "a.bin"):
                raise error
    with pytest.raises(RuntimeError, match="shapes"), replacing(tmp_path / "a.bin"):
        raise RuntimeError("shapes differ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [torch.save, save_file])
def test_the_words_of_the_libraries_are_these(write: Callable[..., None], tmp_path: Path) -> None:
    """Under a limit on the size of files, in a process of its own."""
    ready, words = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=_say_how_it_fails, args=(write, tmp_path / "a", words)
    )
    child.start()
    child.join(60)
    error = ready.recv()
    found = problem_of(error, tmp_path)
    assert found is not None, error
    assert "cannot be written" in found.message


def _say_how_it_fails(write: Callable[..., None], file: Path, words: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    try:
        write({"a": torch.zeros(10_000)}, file)
    except Exception as error:
        words.send(error)


def test_a_file_that_cannot_be_made_is_named_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        write_text(tmp_path / "nowhere" / "plan.json", "{}")
    assert caught.value.errno == errno.ENOENT


KINDS = [
    Failure("full", 140_000) if can_mount() else Failure("limit", 12_000),
    Failure("EIO", 25, processes=2, deepspeed="zero2"),
]


@pytest.mark.parametrize("failure", KINDS, ids=lambda failure: failure.kind)
def test_a_run_goes_on_after_its_disk(failure: Failure, tmp_path: Path) -> None:
    assert attempt(failure, tmp_path / "ground") == ""
