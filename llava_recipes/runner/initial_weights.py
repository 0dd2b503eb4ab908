"""The weights that a run starts from, opened before its first stage: whole, fitting, and finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from llava_recipes.files import expanded
from llava_recipes.plan.trainable import EMBEDDINGS
from llava_recipes.plan.types import ModelPlan
from llava_recipes.projectors import spell_projector
from llava_recipes.recipe.errors import KeyPath, Problem, RecipeError

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
    from llava_recipes.model.image_tokens import rows_problem
    from llava_recipes.model.values import value_problems
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
