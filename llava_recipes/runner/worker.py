"""One training process: `python -m llava_recipes.runner.worker REQUEST.json`."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from llava_recipes.errors import Problem, RecipeError
from llava_recipes.files import write_text
from llava_recipes.runner.launch import stop_with_parent
from llava_recipes.screen import OutputLost, drop_rest, guard_streams


@dataclass(frozen=True)
class Request:
    """One stage to train. Paths are absolute; the plan is read from `output_dir`."""

    output_dir: str
    plan_file: str
    resume_from: str | None
    answers_dir: str

    def write(self, path: Path) -> None:
        write_text(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Request:
        return cls(**json.loads(path.read_text("utf-8")))


@dataclass(frozen=True)
class Result:
    """What the first process reports at the end."""

    num_steps: int
    stopped_early: bool
    last_loss: float | None
    seconds: float
    eval_loss: float | None

    def write(self, folder: Path) -> None:
        write_text(folder / "result.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        path = folder / "result.json"
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else None


def write_problems(folder: Path, rank: int, error: RecipeError) -> None:
    """Leave the user's problems for the parent, which knows the lines of the recipe."""
    problems = [problem.to_json() for problem in error.problems]
    write_text(folder / f"problems-{rank}.json", json.dumps(problems))


def write_bug(folder: Path, rank: int, traceback_text: str) -> None:
    """Leave the traceback of our own mistake for the parent."""
    write_text(folder / f"bug-{rank}.txt", traceback_text)


def read_problems(folder: Path) -> list[Problem]:
    """The problems of all processes; what several of them report alike, once."""
    files = sorted(folder.glob("problems-*.json"))
    problems = [Problem.from_json(values) for file in files for values in json.loads(file.read_text("utf-8"))]
    return list(dict.fromkeys(problems))


def read_bug(folder: Path) -> str | None:
    """The first process's traceback, if any process left one."""
    paths = sorted(folder.glob("bug-*.txt"))
    return paths[0].read_text("utf-8") if paths else None


def main(request_file: str) -> int:
    """Train the stage of a request; leave the result, the problems or the traceback for the parent."""
    stop_with_parent()
    # Hours of training are not lost because a pager was closed.
    guard_streams(outlives_reader=True)
    request = Request.read(Path(request_file))
    answers = Path(request.answers_dir)
    rank = int(os.environ.get("RANK", "0"))
    try:
        result = _train(request)
    except RecipeError as error:
        write_problems(answers, rank, error)
        return 1
    except OutputLost as lost:
        drop_rest(lost.stream)
        message = "the output of the run cannot be written"
        problem = Problem(message, code="output-cannot-be-written", found=str(lost))
        write_problems(answers, rank, RecipeError(problem))
        return 1
    except Exception:
        write_bug(answers, rank, traceback.format_exc())
        return 3
    if result is not None:
        result.write(answers)
    return 0


def _train(request: Request) -> Result | None:
    _quiet_libraries(is_first_process=os.environ.get("RANK", "0") == "0")
    from llava_recipes.plan.types import Plan
    from llava_recipes.runner.run_folder import write_results
    from llava_recipes.train.stage import train_stage

    plan = Plan.model_validate_json(Path(request.plan_file).read_text("utf-8"))
    output_dir = Path(request.output_dir)
    resume_from = Path(request.resume_from) if request.resume_from else None
    trained = train_stage(plan, 0, output_dir=output_dir, resume_from=resume_from)
    if not trained.is_first_process:
        return None
    if not trained.stopped_early:
        write_results(plan, trained, output_dir)
    rows = [
        (
            "stopped" if trained.stopped_early else "done",
            f"step {trained.num_steps:,} in {trained.seconds:,.1f} s",
        ),
        ("loss", "–" if trained.last_loss is None else f"{trained.last_loss:.4f}"),
        ("written to", str(output_dir)),
    ]
    if trained.eval_loss is not None:
        rows.insert(2, ("validation", f"loss {trained.eval_loss:.4f}"))
    if trained.num_skipped:
        rows.insert(2, ("skipped", f"{trained.num_skipped:,} samples with a bad image"))
    trained.reporter.finish(tuple(rows))
    return Result(
        trained.num_steps, trained.stopped_early, trained.last_loss, trained.seconds, trained.eval_loss
    )


def _quiet_libraries(*, is_first_process: bool) -> None:
    """Let the first process alone speak, and the libraries only of what the user can change."""
    if not is_first_process:
        warnings.simplefilter("ignore")
    # DeepSpeed calls torch.distributed by names that torch is about to drop.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It warns at import that a CPU kernel of the hub is not there, also where nothing is quantized.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _leave(code: int) -> None:
    """End the process without running exit handlers, once all is written.

    ZeRO-3 on a CPU sometimes aborts while the interpreter shuts down, after everything is saved.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        if code == 0:
            try:
                dist.barrier()
            except RuntimeError:
                # Another process ended first, and says why itself.
                code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    exit_code = main(sys.argv[1])
    _leave(exit_code)
    raise SystemExit(exit_code)
