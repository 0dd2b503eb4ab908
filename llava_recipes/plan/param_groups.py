"""Which group of `param_groups` a parameter belongs to, and what is wrong with the groups."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.globs import explain_glob, tree_of

_NUM_SHOWN = 3
# These make groups of their own, from the names of layers.
_SELF_GROUPING = ("galore", "apollo", "lomo", "adalomo")


class Globs(Protocol):
    """A group, in a recipe or in a plan."""

    @property
    def modules(self) -> tuple[str, ...]: ...


def group_of(name: str, groups: Sequence[Globs]) -> int | None:
    """Which group a parameter belongs to: the first with a glob that matches it; None for the rest."""
    return groups_of([name], groups).get(name)


def groups_of(names: Collection[str], groups: Sequence[Globs]) -> dict[str, int]:
    """The same for many names at once; those of the rest are left out."""
    tree, found = tree_of(names), dict[str, int]()
    for index, group in enumerate(groups):
        for glob in dict.fromkeys(group.modules):
            for name in tree.matched(glob):
                found.setdefault(name, index)
    return found


def param_group_problems(
    groups: Sequence[Globs], *, names: Collection[str], trainable: Collection[str], stage_path: KeyPath
) -> Iterator[Problem]:
    """Globs that match nothing or nothing that trains, and parameters that two groups claim.

    `names` are canonical parameter names, `trainable` those that train.
    """
    claimed: dict[str, int] = {}
    trains, tree = set(trainable), tree_of(names)
    for index, group in enumerate(groups):
        path: KeyPath = (*stage_path, "param_groups", index, "modules")
        mine: set[str] = set()
        for number, glob in enumerate(group.modules):
            matched = tree.matched(glob)
            if not matched:
                yield explain_glob(glob, names, key="modules", path=(*path, number))
            elif trains.isdisjoint(matched):
                yield _explain_frozen(glob, (*path, number))
            else:
                taken = [name for name in matched if name in trains and name in claimed]
                if taken:
                    yield _explain_claimed(glob, taken, claimed, (*path, number))
                mine.update(matched)
        claimed |= {name: index for name in mine & trains if name not in claimed}


def optimizer_problem(optim: str, groups: Sequence[Globs], *, stage_path: KeyPath) -> Problem | None:
    """Some optimizers sort parameters into groups themselves."""
    if not groups or not optim.startswith(_SELF_GROUPING):
        return None
    return Problem(
        f"`optim: {optim}` makes parameter groups of its own, and `param_groups` asks for others",
        code="optimizer-makes-its-own-groups",
        path=(*stage_path, "train", "optim"),
        hint="write `optim: adamw_torch` under `train:`, or remove `param_groups`",
    )


def _explain_frozen(glob: str, path: KeyPath) -> Problem:
    return Problem(
        f'glob "{glob}" in `modules` matches only what is frozen',
        code="parameter-group-is-frozen",
        path=path,
        found="nothing of it trains in this stage",
        hint=f'add "{glob}" to `trainable`, or remove it here',
    )


def _explain_claimed(glob: str, taken: Sequence[str], claimed: Mapping[str, int], path: KeyPath) -> Problem:
    shown = ", ".join(taken[:_NUM_SHOWN]) + (", …" if len(taken) > _NUM_SHOWN else "")
    others = ", ".join(f"param_groups[{index}]" for index in sorted({claimed[name] for name in taken}))
    return Problem(
        f'glob "{glob}" in `modules` claims parameters of another group',
        code="parameter-groups-overlap",
        path=path,
        found=f"{shown}: in {others} too",
        hint="let each parameter be in one group",
    )
