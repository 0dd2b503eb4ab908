"""Where pretrained files lie: a local folder, or a hub snapshot of the needed files alone."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llava_recipes.recipe.errors import Path, Problem, RecipeError

Part = Literal["config", "tokenizer", "image_processor", "weights"]

PATTERNS: dict[Part, tuple[str, ...]] = {
    "config": ("config.json", "generation_config.json"),
    "tokenizer": (
        "config.json",
        "tokenizer*",
        "*.model",
        "vocab*",
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
    ),
    "image_processor": ("preprocessor_config.json",),
    "weights": ("config.json", "model*.safetensors", "model.safetensors.index.json"),
}
TIMEOUT_S = 20.0
BIN_PATTERNS = ("config.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")


def pretrained_folder(
    source: str, revision: str | None, *, parts: Sequence[Part], path: Path
) -> pathlib.Path:
    """The local folder that holds `parts` of a model given as folder or hub id.

    Safetensors are preferred over `.bin`. `path` is the recipe path named in errors.
    Raises RecipeError when there is no such folder, or the hub's repository cannot be had.
    """
    folder = pathlib.Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise _refusal(
            source, path, "a model is a folder or a hub id, not a file", "give the folder that holds it"
        )
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise _refusal(source, path, "no such folder", "check the path; hub ids read `owner/name`")
    return _snapshot(source, revision, parts, path)


def _snapshot(source: str, revision: str | None, parts: Sequence[Part], path: Path) -> pathlib.Path:
    try:
        available = _repository_files(source, revision)
        patterns = [pattern for part in parts for pattern in PATTERNS[part]]
        if "weights" in parts and (
            available is None or not any(name.endswith(".safetensors") for name in available)
        ):
            patterns += BIN_PATTERNS
        return pathlib.Path(
            snapshot_download(
                source, revision=revision, allow_patterns=patterns, local_files_only=available is None
            )
        )
    except GatedRepoError as error:
        raise _refusal(
            source,
            path,
            "the hub grants this model to approved accounts only",
            "ask for access, then `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise _refusal(
            source, path, f"the hub's repository has no revision {revision!r}", "check `revision`"
        ) from error
    except RepositoryNotFoundError as error:
        raise _refusal(
            source,
            path,
            "no such folder, and no such repository on the hub",
            "check the spelling; a private one needs `hf auth login`",
        ) from error
    except HFValidationError as error:
        raise _refusal(
            source, path, "no such folder, and not a hub id", "hub ids read `owner/name`"
        ) from error
    except LocalEntryNotFoundError as error:
        raise _refusal(
            source,
            path,
            "no such folder, not in the local cache, and the hub cannot be reached",
            "check the network, or give a local folder",
        ) from error
    except (EntryNotFoundError, HTTPError, OSError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise _refusal(
            source, path, f"the hub did not deliver this model: {first_line}", "try again later"
        ) from error


def _repository_files(source: str, revision: str | None) -> list[str] | None:
    """Names in the hub's repository; None when it cannot be asked, and the cache must do."""
    try:
        siblings = HfApi().model_info(source, revision=revision, timeout=TIMEOUT_S).siblings
    except HfHubHTTPError:
        raise
    except (OfflineModeIsEnabled, HTTPError):
        return None
    return [file.rfilename for file in siblings or ()]


def _refusal(source: str, path: Path, message: str, hint: str) -> RecipeError:
    return RecipeError(Problem(message, path=path, found=source, hint=hint))
