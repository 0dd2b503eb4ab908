"""environment.json: what a run was made with. No environment variables: they may hold secrets."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from llava_recipes import __version__
from llava_recipes.masking import mask_command

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "safetensors",
    "pydantic",
    "pillow",
    "numpy",
)


def describe_environment(argv: list[str]) -> dict[str, object]:
    """Versions, platform and the command line, without secrets, as JSON."""
    return {
        "llava_recipes": __version__,
        "command": mask_command(argv),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
