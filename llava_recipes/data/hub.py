"""What the hub answers, in plain words: the reason why a model cannot be had, and what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llava_recipes.errors import KeyPath, RecipeError
from llava_recipes.files import expanded


def check_available(
    source: str, revision: str | None, *, files: Sequence[str], message: str, code: str, path: KeyPath
) -> None:
    """Raise RecipeError with `message` when the hub doesn't deliver the model `source`.

    The libraries that read a tokenizer or an image processor report this in many words, or as a missing file.
    Nothing is asked where `source` exists on this machine or one of `files` is in the local cache.
    """
    if os.path.exists(expanded(source)):
        return
    try:
        if any(isinstance(try_to_load_from_cache(source, name, revision=revision), str) for name in files):
            return
        hf_hub_download(source, files[0], revision=revision)
    except RemoteEntryNotFoundError:
        # The hub was reached; the libraries know other files.
        return
    except (HTTPError, HFValidationError, OSError) as error:
        found, hint = in_plain_words(error, revision)
        raise RecipeError.of(message, code=code, path=path, found=found, hint=hint) from error


def in_plain_words(error: Exception, revision: str | None) -> tuple[str, str]:
    """The message and the hint of an error; the first class that matches decides."""
    reasons: tuple[tuple[type[Exception], str, str], ...] = (
        (
            GatedRepoError,
            "the hub grants this model to approved accounts only",
            "ask for access, then `hf auth login`",
        ),
        (RevisionNotFoundError, f"the hub's repository has no revision {revision!r}", "check `revision`"),
        (
            RepositoryNotFoundError,
            "no such folder, and no such repository on the hub",
            "check the spelling; a private one needs `hf auth login`",
        ),
        (HFValidationError, "no such folder, and not a hub id", "a hub id looks like `owner/name`"),
        (
            LocalEntryNotFoundError,
            "no such folder, not in the local cache, and the hub cannot be reached",
            "check the network, or copy the model and write its folder",
        ),
    )
    for kind, message, hint in reasons:
        if isinstance(error, kind):
            return message, hint
    first_line = str(error).strip().split("\n")[0]
    return f"the hub does not deliver this model: {first_line}", "try again later"
