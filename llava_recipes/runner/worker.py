"""One training process, `python -m llava_recipes.runner.worker REQUEST.json`, and the files it answers with.

The parent imports this too: torch and transformers are imported where they are needed.
"""

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
from llava_recipes.runner.lock import join
from llava_recipes.screen import OutputLost, drop_rest, guard_streams


@dataclass(frozen=True)
class Request:
    """One stage to train. Paths are absolute; `plan_file` is the plan of this stage alone."""

    output_dir: str
    plan_file: str
    resume_from: str | None
    answers_dir: str
    lock: str
    """The run that has the folder's lock, which each process holds too."""

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
    warnings: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        write_text(folder / "result.json", json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Result | None:
        path = folder / "result.json"
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else None


def write_problems(folder: Path, rank: int, error: RecipeError) -> None:
    """Pass problems that the user can fix to the parent, which knows the lines of the recipe."""
    problems = [problem.to_json() for problem in error.problems]
    write_text(folder / f"problems-{rank}.json", json.dumps(problems))


def write_bug(folder: Path, rank: int, traceback_text: str) -> None:
    """Pass the traceback of a bug of ours to the parent."""
    write_text(folder / f"bug-{rank}.txt", traceback_text)


def read_problems(folder: Path) -> list[Problem]:
    """The problems of all processes; one that several of them report comes once."""
    files = sorted(folder.glob("problems-*.json"))
    problems = [Problem.from_json(values) for file in files for values in json.loads(file.read_text("utf-8"))]
    return list(dict.fromkeys(problems))


def read_bug(folder: Path) -> str | None:
    """The traceback of the first process that left one, or None."""
    paths = sorted(folder.glob("bug-*.txt"))
    return paths[0].read_text("utf-8") if paths else None


def main(request_file: str) -> int:
    """Train the stage of a request, and pass the result, the problems or the traceback to the parent."""
    stop_with_parent()
    # Training goes on when its reader, such as a pager, is closed.
    guard_streams(outlives_reader=True)
    request = Request.read(Path(request_file))
    answers = Path(request.answers_dir)
    rank = int(os.environ.get("RANK", "0"))
    try:
        join(Path(request.output_dir), request.lock)
        result = _train(request)
    except RecipeError as error:
        write_problems(answers, rank, error)
        return 1
    except OutputLost as lost:
        drop_rest(lost.stream)
        message = "the run cannot write to its output"
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
    how = "stopped" if trained.stopped_early else "done"
    rows = [
        (how, f"step {trained.num_steps:,} in {trained.seconds:,.1f} s"),
        ("loss", "–" if trained.last_loss is None else f"{trained.last_loss:.4f}"),
    ]
    if trained.num_skipped:
        samples = "1 sample" if trained.num_skipped == 1 else f"{trained.num_skipped:,} samples"
        rows.append(("skipped", f"{samples} with a bad image"))
    if trained.eval_loss is not None:
        rows.append(("validation", f"loss {trained.eval_loss:.4f}"))
    trained.reporter.finish((*rows, ("written to", str(output_dir))))
    return Result(
        trained.num_steps,
        trained.stopped_early,
        trained.last_loss,
        trained.seconds,
        trained.eval_loss,
        trained.warnings,
    )


def _quiet_libraries(*, is_first_process: bool) -> None:
    """Keep the warnings of the first process alone, and of libraries those that a user can act on."""
    if not is_first_process:
        warnings.simplefilter("ignore")
    # DeepSpeed calls deprecated names of torch.distributed.
    warnings.filterwarnings("ignore", category=FutureWarning, message=r"`torch\.distributed\.")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # It warns at import of a missing CPU kernel, also where nothing is quantized.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _leave(code: int) -> None:
    """End the process without its exit handlers, once everything is written.

    ZeRO-3 on a CPU sometimes aborts while the interpreter shuts down, after everything is saved.
    """
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        if code == 0:
            try:
                dist.barrier()
            except RuntimeError:
                # Another process failed first, and reports why itself.
                code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    exit_code = main(sys.argv[1])
    _leave(exit_code)
    raise SystemExit(exit_code)
