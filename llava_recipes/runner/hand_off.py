"""Whether what a stage starts from fits this recipe's model: known before the first stage starts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded
from llava_recipes.plan.compare import identity, is_same, spell_identity
from llava_recipes.plan.trainable import ADAPTER, EMBEDDINGS, NUM_TOKENS
from llava_recipes.plan.trainable import IMAGE_TOKENS_WEIGHT as IMAGE_TOKENS
from llava_recipes.plan.types import ModelPlan, Plan
from llava_recipes.projectors import spell_projector
from llava_recipes.runner.run_folder import DONE, PLAN, unfinished

if TYPE_CHECKING:
    from llava_recipes.model.starts import StartingWeights

Shapes = Mapping[str, tuple[int, ...]]


def base_weights_problems(model: ModelPlan) -> Iterator[Problem]:
    """Base weights in folders of this machine that cannot be opened. Headers are read, and no value."""
    from llava_recipes.model.checkpoint import open_checkpoint
    from llava_recipes.model.configs import LANGUAGE_PATH, TOWER_PATH

    places: tuple[tuple[str | None, KeyPath], ...] = (
        (model.language_model.source, LANGUAGE_PATH),
        (model.vision_tower.source, TOWER_PATH),
    )
    for source, path in places:
        folder = None if source is None else expanded(source)
        # What only the hub has is downloaded, and checked, by the first stage.
        if folder is None or not folder.is_dir():
            continue
        try:
            open_checkpoint(folder, path).open_all()
        except RecipeError as error:
            yield from error.problems


def projector_problems(model: ModelPlan, shapes: Callable[[], Shapes]) -> Iterator[Problem]:
    """Given projector weights that belong to another projector, or that cannot be trained on.

    `shapes` gives the model's, by canonical name.
    """
    try:
        yield from _projector_problems(model, shapes)
    except RecipeError as error:
        yield from error.problems


def _projector_problems(model: ModelPlan, shapes: Callable[[], Shapes]) -> Iterator[Problem]:
    from llava_recipes.model.checkpoint import value_problems
    from llava_recipes.model.learned_rows import rows_problem
    from llava_recipes.model.weights import INIT_PATH, read_projector_weights

    file = model.projector.init_from
    if file is None:
        return
    given, ours = read_projector_weights(file), shapes()
    wanted = {name: shape for name, shape in ours.items() if name.startswith("projector.")}
    if given.shapes() != wanted:
        yield Problem(
            "these projector weights do not fit the recipe's model",
            code="weights-do-not-fit",
            path=INIT_PATH,
            found=f"the file holds {spell_projector(given.shapes())}; "
            f"the recipe says {spell_projector(wanted)}",
            hint="give the weights of this projector, or leave `init_from` out",
        )
        return
    if given.image_tokens is not None:
        problem = rows_problem(
            tuple(given.image_tokens.shape),
            embeddings=ours.get(EMBEDDINGS, (0, 0)),
            has_tokens=model.image_tokens.start_end,
            path=INIT_PATH,
            found=file,
        )
        if problem is not None:
            yield problem
            return
    yield from value_problems(given.all_tensors(), path=INIT_PATH, found=file)


_LANGUAGE = ("language_model.", "lm_head.")
_BY_FILE = "to take its projector all the same, give its mm_projector.bin in `model.projector.init_from`"


def hand_off_problems(
    plan: Plan, stages: Collection[int], shapes: Callable[[], Shapes], *, fetch: bool
) -> Iterator[Problem]:
    """What is wrong with the beginnings of these stages, each at its `init_from`.

    Files and folders are looked at, and the weights of those that fit are read once, to find values that are
    not finite; what stages of this recipe will leave fits by itself. `shapes` gives the model's.
    With `fetch` hub ids are downloaded, without it a warning says that they were not looked at.
    """
    from llava_recipes.model.checkpoint import value_problems

    own = {stage.output_dir for stage in plan.stages}
    told: set[str] = set()
    for index in stages:
        path: KeyPath = ("stages", index, "init_from")
        if (Path(plan.stages[index].output_dir) / DONE).is_file():
            # Its beginning is behind it.
            continue
        for given in plan.stages[index].starts_from:
            if given in told or (given in own and not (Path(given) / DONE).is_file()):
                continue
            told.add(given)
            if not fetch and given not in own and not Path(given).exists():
                yield _not_looked_up(given, path) if _may_be_hub_id(given) else _nowhere(given, path)
                continue
            try:
                start = _open(given, path)
                # A stage of this recipe fits by itself, and may have gone wrong.
                misfits = [] if given in own else list(_misfits(start, plan.model, shapes(), given, path))
                yield from misfits or value_problems(start.each(), path=path, found=given)
            except RecipeError as error:
                yield from error.problems


def _open(given: str, path: KeyPath) -> StartingWeights:
    from llava_recipes.model.starts import open_start

    folder = Path(given)
    if not folder.exists() and not _may_be_hub_id(given):
        raise RecipeError(_nowhere(given, path))
    if (folder / PLAN).is_file() and not (folder / DONE).is_file():
        problem = unfinished(folder)
        message = "`init_from` names a run that is not finished"
        raise RecipeError(replace(problem, message=message, path=path, found=f"{given} has {problem.found}"))
    return open_start(given, path)


def _may_be_hub_id(given: str) -> bool:
    return given.count("/") == 1 and not given.startswith((".", "/")) and Path(given).suffix != ".bin"


def _nowhere(given: str, path: KeyPath) -> Problem:
    return Problem(
        "`init_from` names no folder and no file",
        code="init-from-missing",
        path=path,
        found=f"there is no {given}",
        hint="give an earlier stage, the output_dir of a finished run, a projector's file or a hub id",
    )


def _not_looked_up(given: str, path: KeyPath) -> Problem:
    return Problem(
        "`init_from` is no folder here, and as a hub id it was not looked up",
        code="init-from-not-looked-up",
        path=path,
        found=given,
        hint="`run` looks it up before the first stage; a folder is written ./" + given,
        severity="warning",
    )


def _misfits(
    start: StartingWeights, model: ModelPlan, shapes: Shapes, given: str, path: KeyPath
) -> Iterator[Problem]:
    theirs = start.shapes()
    yield from _check_tower(start, model, given, path)
    yield from _check_tokens(start, model, theirs, shapes, given, path)
    yield from _check_quantized(model, theirs, given, path)
    base = list(_check_base(start, model, theirs, shapes, given, path))
    yield from base
    if not base:
        yield from _check_language(start, theirs, shapes, given, path)
    yield from _check_projector(start, model, theirs, shapes, given, path)
    yield from _check_rest(theirs, shapes, given, path)


def _check_tower(start: StartingWeights, model: ModelPlan, given: str, path: KeyPath) -> Iterator[Problem]:
    claims, tower = start.claims, model.vision_tower
    ours = identity(tower.model_dump(mode="json"))
    if claims.vision_tower is not None and not is_same(claims.vision_tower, ours):
        yield Problem(
            "`init_from` was trained with another vision tower",
            code="init-from-has-another-vision-tower",
            path=path,
            found=f"{given} has {spell_identity(claims.vision_tower)}, this recipe {spell_identity(ours)}",
            hint=f"write its tower in `model.vision_tower`; {_BY_FILE}",
        )
    for key in ("select_layer", "select_feature"):
        wanted, claimed = getattr(tower, key), getattr(claims, key)
        if claimed is not None and claimed != wanted:
            yield Problem(
                f"`init_from` was trained on other features of the tower: another `{key}`",
                code="init-from-has-other-features",
                path=path,
                found=f"{given} has {claimed}, this recipe {wanted}",
                hint=f"write `{key}: {claimed}` in `model.vision_tower`; {_BY_FILE}",
            )


def _check_tokens(
    start: StartingWeights, model: ModelPlan, theirs: Shapes, shapes: Shapes, given: str, path: KeyPath
) -> Iterator[Problem]:
    claimed = start.claims.start_end
    if claimed is None and IMAGE_TOKENS in theirs:
        claimed = True
    wanted = model.image_tokens.start_end
    if claimed is not None and claimed != wanted and (claimed or start.kind != "projector"):
        yield Problem(
            f"`init_from` was trained {'with' if claimed else 'without'} start and end tokens",
            code="image-tokens-do-not-fit",
            path=path,
            found=f"{given}; this recipe has {'some' if wanted else 'none'}",
            hint=f"write `image_tokens: {{start_end: {'true' if claimed else 'false'}}}` in `model:`",
        )
    elif wanted and IMAGE_TOKENS in theirs:
        embeddings = shapes.get(EMBEDDINGS, (0, 0))
        if theirs[IMAGE_TOKENS] not in ((NUM_TOKENS, embeddings[1]), embeddings):
            yield Problem(
                "these embeddings of image tokens do not fit the model",
                code="image-tokens-do-not-fit",
                path=path,
                found=f"{given} holds {list(theirs[IMAGE_TOKENS])}",
                hint=f"{[NUM_TOKENS, embeddings[1]]} or the whole {list(embeddings)} is needed",
            )


def _check_quantized(model: ModelPlan, theirs: Shapes, given: str, path: KeyPath) -> Iterator[Problem]:
    if model.language_model.quantization is not None and any(map(ADAPTER.search, theirs)):
        yield Problem(
            "adapters of an earlier run cannot be merged into a quantized language model",
            code="merge-into-quantized-model",
            path=path,
            found=f"{given} holds adapters",
            hint="start from a run that trained the projector, or remove `quantization`",
        )


def _check_base(
    start: StartingWeights, model: ModelPlan, theirs: Shapes, shapes: Shapes, given: str, path: KeyPath
) -> Iterator[Problem]:
    """Weights that mean something beside the language model that they were trained with, and no other."""
    claimed = start.claims.language_model
    ours = identity(model.language_model.model_dump(mode="json"))
    is_whole = all(name in theirs for name in shapes if name.startswith(_LANGUAGE))
    if claimed is None or is_whole or is_same(claimed, ours):
        return
    has_adapters = any(map(ADAPTER.search, theirs))
    has_language = any(name.startswith(_LANGUAGE) for name in theirs)
    what = (
        "holds adapters for" if has_adapters else "trained a part of" if has_language else "was trained with"
    )
    hint = "write that one in `model.language_model`, or start from a run that was trained with this one"
    yield Problem(
        f"`init_from` {what} another language model",
        code="init-from-has-another-language-model",
        path=path,
        found=f"{given} has {spell_identity(claimed)}, this recipe {spell_identity(ours)}",
        hint=hint if has_language else f"write it in `model.language_model`; {_BY_FILE}",
    )


def _check_language(
    start: StartingWeights, theirs: Shapes, shapes: Shapes, given: str, path: KeyPath
) -> Iterator[Problem]:
    """Sizes of the language model: of its weights, and of those that adapters were made for."""
    needed = {name: shape for name, shape in theirs.items() if name.startswith(_LANGUAGE)}
    wrong = [(name, shape, wanted) for name, shape, wanted in _for_weights(needed, shapes) if shape != wanted]
    if not wrong:
        return
    if all(wanted is not None and shape[1:] == wanted[1:] for _, shape, wanted in wrong):
        name, shape, wanted = wrong[0]
        assert wanted is not None
        hint = "set `model.image_tokens` as it was there; each of its tokens is a row"
        if start.kind == "checkpoint" and shape[0] > wanted[0] + NUM_TOKENS + 1:
            # More than the tokens of images: llava-hf's layout fills the vocabulary up.
            hint = (
                f"write `language_model: {given}` in `model:`, which brings language model, tokenizer and "
                "projector, and leave `init_from` out"
            )
        yield Problem(
            "`init_from` has another vocabulary",
            code="init-from-has-another-vocabulary",
            path=path,
            found=f"{given}: {name} has {shape[0]:,} rows, this recipe's model {wanted[0]:,}",
            hint=hint,
        )
        return
    name, shape, wanted = wrong[0]
    yield Problem(
        "`init_from` does not fit this recipe's language model",
        code="init-from-has-another-language-model",
        path=path,
        found=f"{given}: {len(wrong)} weight(s), the first {name} of shape {list(shape)}; "
        + ("the model has none" if wanted is None else f"the model has {list(wanted)}"),
        hint="start from a run that was trained with this language model",
    )


def _for_weights(
    theirs: Shapes, shapes: Shapes
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...] | None]]:
    """Each weight with its shape and the model's; of an adapter, the weight that it is for."""
    for name, shape in theirs.items():
        if not ADAPTER.search(name):
            yield name, shape, shapes.get(name)
        elif ".lora_A." in name:
            module = name[: name.index(".lora_")]
            up = theirs.get(f"{module}.lora_B.weight", (0, 0))
            yield f"{module}.weight", (up[0], shape[-1]), shapes.get(f"{module}.weight")


def _check_projector(
    start: StartingWeights, model: ModelPlan, theirs: Shapes, shapes: Shapes, given: str, path: KeyPath
) -> Iterator[Problem]:
    held, wanted = (
        {
            name: shape
            for name, shape in each.items()
            if name.startswith("projector.") and not ADAPTER.search(name)
        }
        for each in (theirs, shapes)
    )
    # What trains a part of the projector leaves that part alone; its type is then told by what it says.
    claimed = start.claims.projector
    is_other = set(held) != set(wanted) if claimed is None else claimed != model.projector.type
    if any(shape != wanted.get(name) for name, shape in held.items()) or (held and is_other):
        yield Problem(
            "`init_from` has another projector",
            code="init-from-has-another-projector",
            path=path,
            found=f"{given} holds {spell_projector(held)}; this recipe has {spell_projector(wanted)}",
            hint="write its type in `model.projector`, or start from a run with this projector",
        )


def _check_rest(theirs: Shapes, shapes: Shapes, given: str, path: KeyPath) -> Iterator[Problem]:
    known = (*_LANGUAGE, "projector.")
    for name, shape in theirs.items():
        if name == IMAGE_TOKENS or name.startswith(known) or ADAPTER.search(name):
            continue
        if shape != shapes.get(name):
            wanted = shapes.get(name)
            yield Problem(
                "`init_from` holds a weight that this recipe's model does not have"
                if wanted is None
                else "`init_from` holds a weight of another size",
                code="init-from-has-other-weights",
                path=path,
                found=f"{given}: {name} of shape {list(shape)}"
                + ("" if wanted is None else f"; the model has {list(wanted)}"),
                hint="start from a run of the same model",
            )
            return
