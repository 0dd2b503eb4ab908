"""Check that the weights of a run fit: the base's, the projector's, and what each stage starts from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.errors import KeyPath, Problem, RecipeError
from llava_recipes.files import expanded
from llava_recipes.plan.compare import identity, is_same, spell_identity
from llava_recipes.plan.trainable import ADAPTER, EMBEDDINGS, IMAGE_TOKENS_WEIGHT, NUM_TOKENS
from llava_recipes.plan.types import ModelPlan, Plan
from llava_recipes.projectors import spell_projector
from llava_recipes.runner.results import DONE, check_result_file, check_results
from llava_recipes.runner.run_folder import PLAN, unfinished

if TYPE_CHECKING:
    from llava_recipes.model.starts import StartingWeights

Shapes = Mapping[str, tuple[int, ...]]

_LANGUAGE = ("language_model.", "lm_head.")
_BY_FILE = "to use only its projector, name its mm_projector.bin in `model.projector.init_from`"


def base_weights_problems(model: ModelPlan) -> Iterator[Problem]:
    """Base weights in local folders that cannot be opened; only the headers of files are read."""
    from llava_recipes.model.checkpoint import open_checkpoint
    from llava_recipes.model.configs import LANGUAGE_PATH, TOWER_PATH

    for source, path in (
        (model.language_model.source, LANGUAGE_PATH),
        (model.vision_tower.source, TOWER_PATH),
    ):
        # The first stage downloads, and checks, what only the hub has.
        if source is not None and expanded(source).is_dir():
            try:
                open_checkpoint(expanded(source), path).open_all()
            except RecipeError as error:
                yield from error.problems


def projector_problems(model: ModelPlan, shapes: Callable[[], Shapes]) -> Iterator[Problem]:
    """Weights in `projector.init_from` that belong to another projector or cannot be trained on.

    `shapes` returns those of the model, by canonical name.
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
    check_start(file, path=INIT_PATH)
    given, ours = read_projector_weights(file), shapes()
    wanted = {name: shape for name, shape in ours.items() if name.startswith("projector.")}
    if given.shapes() != wanted:
        yield Problem(
            "these projector weights do not fit the recipe's model",
            code="weights-do-not-fit",
            path=INIT_PATH,
            found=f"the file contains {spell_projector(given.shapes())}; "
            f"the recipe has {spell_projector(wanted)}",
            hint="name the weights of this projector, or leave `init_from` out",
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


def hand_off_problems(
    plan: Plan, stages: Collection[int], shapes: Callable[[], Shapes], *, fetch: bool
) -> Iterator[Problem]:
    """What is wrong with the weights that these stages start from, each at its `init_from`.

    Weights that fit are read once, to find values that are not finite. Those of an earlier stage of this
    recipe always fit. `shapes` returns those of the model, by canonical name. With `fetch` hub ids are
    downloaded; without it a warning says that they were not looked up.
    """
    from llava_recipes.model.checkpoint import value_problems

    own = {stage.output_dir for stage in plan.stages}
    seen: set[str] = set()
    for index in stages:
        path: KeyPath = ("stages", index, "init_from")
        if (Path(plan.stages[index].output_dir) / DONE).is_file():
            # A finished stage needs its start no more.
            continue
        for given in plan.stages[index].starts_from:
            if given in seen or (given in own and not (Path(given) / DONE).is_file()):
                continue
            seen.add(given)
            if not fetch and given not in own and not Path(given).exists():
                yield _not_looked_up(given, path) if _may_be_hub_id(given) else _missing(given, path)
                continue
            try:
                weights = _open(given, path)
                misfits: list[Problem] = []
                if given not in own:
                    start = _Start(weights, given, path, plan.model, weights.shapes(), shapes())
                    misfits += start.problems()
                yield from misfits or value_problems(weights.each(), path=path, found=given)
            except RecipeError as error:
                yield from error.problems


def _open(given: str, path: KeyPath) -> StartingWeights:
    from llava_recipes.model.starts import open_start

    folder = Path(given)
    if not folder.exists() and not _may_be_hub_id(given):
        raise RecipeError(_missing(given, path))
    if (folder / PLAN).is_file() and not (folder / DONE).is_file():
        problem = unfinished(folder)
        message = "`init_from` names a run that is not finished"
        raise RecipeError(replace(problem, message=message, path=path, found=f"{given} has {problem.found}"))
    check_start(given, path=path)
    return open_start(given, path)


def check_start(given: str, *, path: KeyPath) -> None:
    """Raise RecipeError when a finished run, a checkpoint or a file of one is not as the run wrote it.

    Others pass.
    """
    from llava_recipes.train.checkpoints import SEAL, find_damage_of_weights

    place = expanded(given)
    if (place / PLAN).is_file() and (place / DONE).is_file():
        check_results(place, path=path)
        return
    if place.is_file():
        check_result_file(place, path=path)
    checkpoint = place.parent if place.is_file() else place
    if (checkpoint / SEAL).is_file() and (damage := find_damage_of_weights(checkpoint)) is not None:
        raise RecipeError.of(
            "the checkpoint that `init_from` names is damaged",
            code="init-from-damaged",
            path=path,
            found=f"{given}: {damage}",
            hint="name another checkpoint of that run, or its folder if it is finished",
        )


def _may_be_hub_id(given: str) -> bool:
    return given.count("/") == 1 and not given.startswith((".", "/")) and Path(given).suffix != ".bin"


def _missing(given: str, path: KeyPath) -> Problem:
    return Problem(
        "the file or folder of `init_from` does not exist",
        code="init-from-missing",
        path=path,
        found=given,
        hint="name an earlier stage, the output_dir of a finished run, a projector's file or a hub id",
    )


def _not_looked_up(given: str, path: KeyPath) -> Problem:
    return Problem(
        "`init_from` isn't a folder here, and was not looked up on the hub",
        code="init-from-not-looked-up",
        path=path,
        found=given,
        hint=f"`run` looks it up before the first stage; for a folder write ./{given}",
        severity="warning",
    )


@dataclass(frozen=True)
class _Start:
    """Weights that a stage starts from, and the model that they must fit; shapes by canonical name."""

    weights: StartingWeights
    given: str
    path: KeyPath
    model: ModelPlan
    theirs: Shapes
    ours: Shapes

    def problems(self) -> Iterator[Problem]:
        yield from self._tower_problems()
        yield from self._token_problems()
        yield from self._quantization_problems()
        base = list(self._base_problems())
        yield from base or self._language_problems()
        yield from self._projector_problems()
        yield from self._other_problems()

    def _tower_problems(self) -> Iterator[Problem]:
        claims, tower = self.weights.claims, self.model.vision_tower
        ours = identity(tower.model_dump(mode="json"))
        if claims.vision_tower is not None and not is_same(claims.vision_tower, ours):
            theirs = spell_identity(claims.vision_tower)
            yield Problem(
                "`init_from` was trained with another vision tower",
                code="init-from-has-another-vision-tower",
                path=self.path,
                found=f"{self.given} has {theirs}, this recipe {spell_identity(ours)}",
                hint=f"write its tower in `model.vision_tower`; {_BY_FILE}",
            )
        for key in ("select_layer", "select_feature"):
            wanted, claimed = getattr(tower, key), getattr(claims, key)
            if claimed is not None and claimed != wanted:
                yield Problem(
                    f"`init_from` was trained with another `{key}` of the tower",
                    code="init-from-has-other-features",
                    path=self.path,
                    found=f"{self.given} has {claimed}, this recipe {wanted}",
                    hint=f"write `{key}: {claimed}` in `model.vision_tower`; {_BY_FILE}",
                )

    def _token_problems(self) -> Iterator[Problem]:
        found = self.theirs.get(IMAGE_TOKENS_WEIGHT)
        claimed = self.weights.claims.start_end
        if claimed is None and found is not None:
            claimed = True
        wanted = self.model.image_tokens.start_end
        if claimed is not None and claimed != wanted and (claimed or self.weights.kind != "projector"):
            yield Problem(
                f"`init_from` was trained {'with' if claimed else 'without'} start and end tokens",
                code="image-tokens-do-not-fit",
                path=self.path,
                found=f"{self.given}; this recipe has {'some' if wanted else 'none'}",
                hint=f"write `image_tokens: {{start_end: {'true' if claimed else 'false'}}}` in `model:`",
            )
        elif wanted and found is not None:
            from llava_recipes.model.learned_rows import rows_problem

            problem = rows_problem(
                found,
                embeddings=self.ours.get(EMBEDDINGS, (0, 0)),
                has_tokens=True,
                path=self.path,
                found=str(self.given),
            )
            if problem is not None:
                yield problem

    def _quantization_problems(self) -> Iterator[Problem]:
        if self.model.language_model.quantization is not None and any(map(ADAPTER.search, self.theirs)):
            yield Problem(
                "adapters of an earlier run cannot be merged into a quantized language model",
                code="merge-into-quantized-model",
                path=self.path,
                found=f"{self.given} contains adapters",
                hint="start from a run that trained the projector, or remove `quantization`",
            )

    def _base_problems(self) -> Iterator[Problem]:
        """Weights that only make sense together with the language model that they were trained with."""
        claimed = self.weights.claims.language_model
        ours = identity(self.model.language_model.model_dump(mode="json"))
        is_whole = all(name in self.theirs for name in self.ours if name.startswith(_LANGUAGE))
        if claimed is None or is_whole or is_same(claimed, ours):
            return
        has_language = any(name.startswith(_LANGUAGE) for name in self.theirs)
        how = "was trained with"
        if any(map(ADAPTER.search, self.theirs)):
            how = "contains adapters for"
        elif has_language:
            how = "trained a part of"
        hint = "write that one in `model.language_model`, or start from a run that was trained with this one"
        yield Problem(
            f"`init_from` {how} another language model",
            code="init-from-has-another-language-model",
            path=self.path,
            found=f"{self.given} has {spell_identity(claimed)}, this recipe {spell_identity(ours)}",
            hint=hint if has_language else f"write it in `model.language_model`; {_BY_FILE}",
        )

    def _language_problems(self) -> Iterator[Problem]:
        """Shapes of the language model: of its weights, and of those that adapters were made for."""
        wrong = [each for each in self._language_shapes() if each[1] != each[2]]
        if not wrong:
            return
        name, shape, wanted = wrong[0]
        if wanted is None or any(each is None or shape[1:] != each[1:] for _, shape, each in wrong):
            weights = "1 weight" if len(wrong) == 1 else f"{len(wrong)} weights, the first"
            yield Problem(
                "`init_from` does not fit this recipe's language model",
                code="init-from-has-another-language-model",
                path=self.path,
                found=f"{self.given}: {weights} {name} of shape {list(shape)}; "
                + ("the model has none" if wanted is None else f"the model has {list(wanted)}"),
                hint="start from a run that was trained with this language model",
            )
            return
        hint = "set `model.image_tokens` as it was there; each of its tokens is a row"
        if self.weights.kind == "checkpoint" and shape[0] > wanted[0] + NUM_TOKENS + 1:
            # More than the tokens of images: the layout of llava-hf pads the vocabulary.
            hint = (
                f"write `language_model: {self.given}` in `model:`, which brings language model, tokenizer "
                "and projector, and leave `init_from` out"
            )
        yield Problem(
            "`init_from` has another vocabulary",
            code="init-from-has-another-vocabulary",
            path=self.path,
            found=f"{self.given}: {name} has {shape[0]:,} rows, this recipe's model {wanted[0]:,}",
            hint=hint,
        )

    def _language_shapes(self) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...] | None]]:
        """Each weight with its shape and the model's; for an adapter, the weight that it belongs to."""
        for name, shape in self.theirs.items():
            if not name.startswith(_LANGUAGE):
                continue
            if not ADAPTER.search(name):
                yield name, shape, self.ours.get(name)
            elif ".lora_A." in name:
                module = name[: name.index(".lora_")]
                up = self.theirs.get(f"{module}.lora_B.weight", (0, 0))
                yield f"{module}.weight", (up[0], shape[-1]), self.ours.get(f"{module}.weight")

    def _projector_problems(self) -> Iterator[Problem]:
        theirs, ours = (
            {
                name: shape
                for name, shape in each.items()
                if name.startswith("projector.") and not ADAPTER.search(name)
            }
            for each in (self.theirs, self.ours)
        )
        # A run that trained a part of the projector saves only that part; its plan says the type.
        claimed = self.weights.claims.projector
        is_other = set(theirs) != set(ours) if claimed is None else claimed != self.model.projector.type
        if any(shape != ours.get(name) for name, shape in theirs.items()) or (theirs and is_other):
            yield Problem(
                "`init_from` has another projector",
                code="init-from-has-another-projector",
                path=self.path,
                found=f"{self.given} has {spell_projector(theirs)}; this recipe has {spell_projector(ours)}",
                hint="write its type in `model.projector`, or start from a run with this projector",
            )

    def _other_problems(self) -> Iterator[Problem]:
        """The first weight of other parts that the model does not have in this shape."""
        for name, shape in self.theirs.items():
            if name == IMAGE_TOKENS_WEIGHT or name.startswith((*_LANGUAGE, "projector.")):
                continue
            wanted = self.ours.get(name)
            if not ADAPTER.search(name) and shape != wanted:
                yield Problem(
                    "`init_from` contains a weight that this recipe's model does not have"
                    if wanted is None
                    else "`init_from` contains a weight of another shape",
                    code="init-from-has-other-weights",
                    path=self.path,
                    found=f"{self.given}: {name} of shape {list(shape)}"
                    + ("" if wanted is None else f"; the model has {list(wanted)}"),
                    hint="start from a run of the same model",
                )
                return
