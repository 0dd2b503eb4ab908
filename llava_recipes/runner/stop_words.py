"""What is said when a run stops early: after which step, what stands, and how to go on."""

from __future__ import annotations

from pathlib import Path

from llava_recipes.plan.types import StagePlan
from llava_recipes.runner.launch import Answer


def stopped_words(stage: StagePlan, answer: Answer, reason: str | None) -> str:
    """One line for a stage that stopped early, or was killed while it was asked to."""
    reports = answer.reports
    newest = _newest_checkpoint(Path(stage.output_dir))
    saved = [result.num_steps for result in reports.results.values() if result.stopped_early]
    if saved and not answer.cut_short:
        step = max(saved)
        what = f"stopped after step {step:,} and saved checkpoint-{step}; `--resume` continues from it"
    elif answer.cut_short and reports.has_begun:
        what = f"ended at once: {answer.cut_short}; {_standing(newest)}"
    elif steps := [stop["step"] for stop in reports.stops if stop.get("step") is not None]:
        waits = [stop["waited_for"] for stop in reports.stops if stop.get("waited_for")]
        why = f", since nothing moved while the run waited for {waits[0]}" if waits else ""
        what = f"stopped after step {max(steps):,} without saving it{why}; {_standing(newest)}"
    elif newest is None:
        what = "interrupted before the first step; nothing was saved; the same command starts it again"
    else:
        what = f"interrupted before a further step; {_standing(newest)}"
    return f"{stage.name}: {what}" + ("" if reason is None else f" (asked by {reason})")


def _standing(newest: Path | None) -> str:
    if newest is None:
        return "no checkpoint was saved; the same command starts it again at step 0"
    return f"{newest.name} stands, and `--resume` continues from it"


def _newest_checkpoint(folder: Path) -> Path | None:
    from llava_recipes.train.checkpoints import SEAL, list_checkpoints

    return next((found.folder for found in list_checkpoints(folder) if (found.folder / SEAL).is_file()), None)
