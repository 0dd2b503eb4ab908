"""The folder of pretrained files: a local one, or a hub snapshot of only the needed files."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import pathlib
from collections.abc import Sequence
from typing import Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from llava_recipes.data.hub import in_plain_words
from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.files import expanded
from llava_recipes.recipe.foreign import check_model_folder

Part = Literal["config", "tokenizer", "image_processor", "weights", "start"]

PATTERNS: dict[Part, tuple[str, ...]] = {
    "config": ("config.json", "generation_config.json"),
    "tokenizer": (
        *("config.json", "tokenizer*", "*.model", "vocab*", "merges.txt"),
        *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    ),
    "image_processor": ("preprocessor_config.json", "processor_config.json"),
    "weights": ("config.json", "model*.safetensors", "model.safetensors.index.json"),
    # What a stage may start from: a whole model, adapters, or a projector.
    "start": (
        *("config.json", "model*.safetensors", "model.safetensors.index.json"),
        *("adapter_config.json", "adapter_model.*", "non_lora_trainables.bin", "mm_projector.*"),
        *("plan.json", "DONE", "trained.safetensors"),
    ),
}
CODE = "*.py"
"""Files of a model's own code: never run, so neither downloaded nor copied."""

_TIMEOUT_S = 20.0
_SERVER_FAULT = 500
_BIN_PATTERNS = ("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def pretrained_folder(
    source: str, revision: str | None, *, parts: Sequence[Part], path: KeyPath
) -> pathlib.Path:
    """The local folder with `parts` of a model that is named by folder or hub id.

    Safetensors are preferred over `.bin`. `path` is the recipe path named in errors.
    Raises RecipeError when the folder does not exist, the hub's repository is not available, or settings name
    code to run.
    """
    folder = expanded(source)
    if os.path.isdir(folder):
        check_model_folder(folder, path)
        return folder
    if os.path.exists(folder):
        message, hint = "a model is a folder or a hub id, not a file", "write the folder that contains it"
        raise _refusal(source, path, message, hint, code="model-source-is-a-file")
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        hint = "check the path; a hub id looks like `owner/name`"
        raise _refusal(source, path, "no such folder", hint, code="folder-does-not-exist")
    fetched = _snapshot(source, revision, parts, path)
    check_model_folder(fetched, path)
    return fetched


def _snapshot(source: str, revision: str | None, parts: Sequence[Part], path: KeyPath) -> pathlib.Path:
    try:
        available = _repository_files(source, revision)
        *others, last = _pattern_choices(parts, available)
        for patterns in others:
            with contextlib.suppress(LocalEntryNotFoundError):
                return _download(source, revision, patterns, cached=available is None)
        return _download(source, revision, last, cached=available is None)
    except (HTTPError, HFValidationError, OSError) as error:
        message, hint = in_plain_words(error, revision)
        raise _refusal(source, path, message, hint, code="model-not-available") from error


def _pattern_choices(parts: Sequence[Part], available: Sequence[str] | None) -> list[list[str]]:
    """Which files to ask for, best first; offline, when the hub cannot list them, both kinds of weights."""
    safe = [pattern for part in parts for pattern in PATTERNS[part]]
    if not {"weights", "start"}.intersection(parts):
        return [safe]
    if available is None:
        return [safe, [*safe, *_BIN_PATTERNS]]
    has_safetensors = any(fnmatch.fnmatch(name, "model*.safetensors") for name in available)
    return [safe if has_safetensors else [*safe, *_BIN_PATTERNS]]


def _download(source: str, revision: str | None, patterns: list[str], *, cached: bool) -> pathlib.Path:
    folder = snapshot_download(
        source, revision=revision, allow_patterns=patterns, ignore_patterns=CODE, local_files_only=cached
    )
    return pathlib.Path(folder)


def _repository_files(source: str, revision: str | None) -> list[str] | None:
    """Files of the hub's repository; None when the hub cannot be asked, so only the cache is left."""
    try:
        siblings = HfApi().model_info(source, revision=revision, timeout=_TIMEOUT_S).siblings
    except HfHubHTTPError as error:
        if error.response.status_code < _SERVER_FAULT:
            raise
        return None
    except (OfflineModeIsEnabled, HTTPError):
        return None
    return [file.rfilename for file in siblings or ()]


def _refusal(source: str, path: KeyPath, message: str, hint: str, *, code: str) -> RecipeError:
    return RecipeError.of(message, code=code, path=path, found=source, hint=hint)
