"""The table of projector types: name, parameter shapes, and memory for the backward pass, without torch.

`model/projector.py` builds the modules. The table is below the recipe language, whose schema takes the names
from it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

MOST_LAYERS = 99
STOCK = "mlp2x_gelu"
"""The type of LLaVA 1.5, and the only one that transformers and llama.cpp support."""


def linear(name: str, num_in: int, num_out: int) -> dict[str, tuple[int, ...]]:
    """Weight and bias of a linear layer; an empty name for the module itself."""
    before = f"{name}." if name else ""
    return {f"{before}weight": (num_out, num_in), f"{before}bias": (num_out,)}


def _stack(num_layers: int, vision: int, language: int) -> Shapes:
    """Linear layers, numbered with the GELUs between them as in the original."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(num_layers):
        shapes |= linear(str(2 * layer), language if layer else vision, language)
    return shapes


def _kept_by_stack(trained: Collection[str], vision: int, language: int) -> int:
    """The input of the first layer that trains, and input and output of the GELU between each two."""
    return bool(trained) * vision + max(0, len(trained) - 1) * 2 * language


@dataclass(frozen=True, kw_only=True)
class ProjectorType:
    """One type. Sizes are N (1 if the name has none) and the hidden sizes of tower and language model."""

    name: str
    """As in a recipe; `N` is a number of layers from 1 to 99."""
    meaning: str
    shapes: Callable[[int, int, int], Shapes]
    """Shapes of its parameters, by their names inside the module. The first matrix takes the tower's
    features, the last one returns those of the language model."""
    kept: Callable[[Collection[str], int, int], int] = _kept_by_stack
    """How many numbers one patch keeps in memory for the backward pass, from what trains and the sizes."""
    keeps_width: bool = False
    """Whether tower and language model must have the same hidden size."""
    in_original: bool = False
    """Whether the original LLaVA supports it."""

    @property
    def pattern(self) -> str:
        """A regular expression for its names in recipes."""
        return self.name.replace("N", "[1-9][0-9]?")

    def numbered(self, number: int) -> str:
        """Its name with this number of layers."""
        return self.name.replace("N", str(number))


PROJECTOR_TYPES = (
    ProjectorType(
        name="linear",
        meaning="one linear layer",
        shapes=lambda _, vision, language: linear("", vision, language),
        in_original=True,
    ),
    ProjectorType(
        name="identity",
        meaning="none, for models of one hidden size",
        shapes=lambda *_: {},
        keeps_width=True,
        in_original=True,
    ),
    ProjectorType(
        name="mlpNx_gelu",
        meaning="N linear layers with GELU between them",
        shapes=_stack,
        in_original=True,
    ),
)


def pattern() -> str:
    """A regular expression for all names in recipes."""
    return f"^({'|'.join(kind.pattern for kind in PROJECTOR_TYPES)})$"


def type_named(name: str) -> tuple[ProjectorType, int]:
    """The type with this name, and its number of layers. Raises ValueError for an unknown name."""
    for kind in PROJECTOR_TYPES:
        if re.fullmatch(kind.pattern, name):
            number = re.search("[1-9][0-9]?", name) if "N" in kind.name else None
            return kind, int(number[0]) if number else 1
    raise ValueError(f"unknown projector type {name!r}")


def projector_shapes(name: str, vision_hidden: int, language_hidden: int) -> Shapes:
    """Parameter names inside a projector and their shapes, in the original's numbering."""
    kind, num_layers = type_named(name)
    return kind.shapes(num_layers, vision_hidden, language_hidden)


def has_weights(name: str) -> bool:
    """Whether the type with this name has parameters. Raises ValueError for an unknown name."""
    return bool(projector_shapes(name, 1, 1))


def recognize(shapes: Shapes) -> tuple[str, int, int] | None:
    """The name of the type with these parameters, and its input and output width; None if there is none.

    The widths of a type without weights are 0.
    """
    for kind in PROJECTOR_TYPES:
        numbers = range(1, min(len(shapes), MOST_LAYERS) + 1) if "N" in kind.name else (1,)
        for number in numbers:
            names = kind.shapes(number, 1, 1)
            if set(names) != set(shapes):
                continue
            matrices = [shapes[name] for name in names if len(shapes[name]) == 2] or [(0, 0)]
            widths = matrices[0][1], matrices[-1][0]
            if kind.shapes(number, *widths) == dict(shapes):
                return (kind.numbered(number), *widths)
    return None


def spell_projector(shapes: Shapes) -> str:
    """A projector's type and its widths, for a message: `mlp2x_gelu`, 1024 to 5120 to 5120.

    shapes  by canonical names: `projector.0.weight`
    """
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    found = recognize({name.removeprefix("projector."): shape for name, shape in shapes.items()})
    kind = "part of a projector" if found is None else f"`{found[0]}`"
    widths = [matrices[0][1], *(shape[0] for shape in matrices)] if matrices else []
    return ", ".join([kind, " to ".join(map(str, widths))] if widths else [kind])
