"""What an opened run cannot be exported to, said before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llava_recipes.model.configs import language_half, vision_half
from llava_recipes.model.head import Head
from llava_recipes.model.pretrained import pretrained_folder
from llava_recipes.plan.exports import (
    ExportFacts,
    Target,
    facts_of,
    refusals,
    unread_adapters,
    unread_by_original,
    way_out,
)
from llava_recipes.recipe.errors import Problem, RecipeError
from llava_recipes.runner.tokenizer_kind import tokenizer_kind
from llava_recipes.runs.gguf_spelling import spelling_for
from llava_recipes.runs.opened import OpenedRun
from llava_recipes.runs.run_folder import read_run

_OF_LLAMA_CPP = (
    "README.md in the folder has the commands for llama.cpp; it reads CLIP's class token wrongly (its issue "
    "25814), and answers are right once that is fixed"
)


def check_allowed(run: OpenedRun, target: Target) -> None:
    """Raise RecipeError with every reason why the run cannot be exported to a target."""
    facts = export_facts(run)
    problems = [
        Problem(
            refusal.reason, code="export-refused", found=refusal.found, hint=refusal.hint or way_out(facts)
        )
        for refusal in refusals(facts, target)
    ]
    if problems:
        raise RecipeError(*problems)


def export_facts(run: OpenedRun) -> ExportFacts:
    """What the exports ask of the model that was opened."""
    config = run.assembled.model.config
    facts = facts_of(
        run.plan,
        run.data,
        language=language_half(config).to_dict(),
        vision=vision_half(config).to_dict(),
        tokenizer=tokenizer_kind(tokenizer_folder(run)),
    )
    if not isinstance(run.assembled.model.lm_head, Head):
        return replace(facts, head="")
    return facts if facts.head else replace(facts, head="more than a matrix")


def notes_of(run: OpenedRun, target: Target) -> tuple[str, ...]:
    """What a person should know of an export in the original's layout that the original does not read."""
    if target == "gguf-ready":
        if spelling_for(run).is_exact:
            return (_OF_LLAMA_CPP,)
        return (_OF_LLAMA_CPP, "llama.cpp spells this model's prompts otherwise than training did")
    if target != "llava":
        return ()
    facts = export_facts(run)
    reasons = unread_by_original(facts)
    if reasons:
        return (f"the original LLaVA cannot read this model: {'; '.join(reasons)}",)
    if run.kind != "run":
        return ()
    unread = unread_adapters(read_run(run.path).stages[0], facts)
    if not unread:
        return ()
    told = "; ".join(reason for _, reason in unread)
    return (f"the original LLaVA reads this model, but not the adapters in {run.path}: {told}",)


def tokenizer_folder(run: OpenedRun) -> Path:
    """Where the tokenizer was read from."""
    language = run.plan.language_model
    revision = language.revision if language.tokenizer == language.source else None
    return pretrained_folder(language.tokenizer, revision, parts=("tokenizer",), path=())
