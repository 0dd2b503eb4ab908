"""Which library versions this package works with, and what differs between them.

Each difference says which lower bound makes it unnecessary. No other module asks for a version.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_recipes.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INSTALL = "install a version that works with llava-recipes: pip install"


def check_versions(extra: str = "") -> None:
    """Raise RecipeError when a library is missing or its version is outside pyproject.toml's bounds.

    With the name of an extra, the libraries of that extra are checked too.
    """
    found = version_problem(extra)
    if found is not None:
        raise RecipeError.of(found, code="library-version")


@functools.cache
def version_problem(extra: str = "") -> str | None:
    """One line with every library of a wrong version and what to install; None if there is none."""
    found, wanted = [], []
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return f"packaging is not installed; {_INSTALL} packaging"
    for requirement in map(Requirement, _requirements()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if requirement.marker is not None:
                # Reported where it is needed; it may also be available without being installed.
                continue
            found.append(f"{requirement.name} is not installed")
        else:
            if requirement.specifier.contains(installed, prereleases=True):
                continue
            found.append(f"{requirement.name} {installed} is installed, {requirement.specifier} is required")
        wanted.append(f"'{requirement.name}{requirement.specifier}'")
    return f"{'; '.join(found)}; {_INSTALL} {' '.join(wanted)}" if found else None


def _requirements() -> list[str]:
    """The requirements of the installed package, or of a checkout that isn't installed."""
    try:
        return requires("llava-recipes") or []
    except PackageNotFoundError:
        project = Path(__file__).parents[1] / "pyproject.toml"
        if not project.is_file():
            return []
        import tomllib

        texts: list[str] = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
        return texts


def training_arguments(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of TrainingArguments, under the names of the installed transformers.

    Can go with transformers>=5.23: up to 5.22 `activation_checkpointing` is `gradient_checkpointing` there.
    """
    from transformers import TrainingArguments

    old, new = "gradient_checkpointing", "activation_checkpointing"
    if new in {field.name for field in dataclasses.fields(TrainingArguments)}:
        return dict(wanted)
    return {name.replace(new, old): value for name, value in wanted.items()}


def auto_image_processor() -> Any:
    """transformers' AutoImageProcessor, which doesn't need torchvision for Pillow's classes.

    Can go with transformers>=5.18: in 5.17 the name at the top of the package requires torchvision.
    """
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    return AutoImageProcessor


def recompute_activations(model: PreTrainedModel) -> None:
    """Let a model recompute its layers' activations in the backward pass, as the Trainer does.

    Can go with transformers>=5.23: up to 5.22 `activation_checkpointing` is `gradient_checkpointing` there.
    """
    old = "gradient_checkpointing_enable"
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(model, old)
    enable({"use_reentrant": False})


def keep_rotary_frequencies(model: PreTrainedModel) -> None:
    """Compute rotary frequencies again in float32, after ZeRO-3 has rounded them to the weights' precision.

    Can go with transformers>=5.23, which protects them from ZeRO-3.
    """
    for module in model.modules():
        given = dict(module.named_buffers(recurse=False))
        if any(name.endswith("inv_freq") and buffer.itemsize < 4 for name, buffer in given.items()):
            for name, exact in type(module)(module.config).named_buffers(recurse=False):
                setattr(module, name, exact.to(given[name].device))


def unnamed_config_keys(model_type: str) -> frozenset[str]:
    """Keys that a model reads from its config although the config's class doesn't declare them.

    Can go with transformers>=5.23: where SigLIP's class declares all of them.
    """
    return frozenset({"vision_use_head"} if model_type == "siglip_vision_model" else ())


@functools.cache
def load_to_numbered_cpu() -> None:
    """Let torch.load accept "cpu:0", which the Trainer passes when several processes resume on a CPU.

    Can go with transformers>=5.18, which passes "cpu".
    """
    from torch.serialization import register_package

    def keep(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    # Last of all: torch's own packages have priorities from 10 to 31.
    register_package(40, lambda storage: None, keep)
