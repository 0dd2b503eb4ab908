"""Which kind a folder's tokenizer is, without loading it."""

from __future__ import annotations

import json
from pathlib import Path

from llava_recipes.plan.exports import SENTENCEPIECE

SENTENCEPIECE_FILE, TOKENIZER_FILE = "tokenizer.model", "tokenizer.json"


def tokenizer_kind(folder: Path) -> str | None:
    """`sentencepiece`, or the type that tokenizer.json gives its model: `BPE`, `WordLevel`, ….

    None where the folder has neither file, or one that cannot be read.
    """
    if (folder / SENTENCEPIECE_FILE).is_file():
        return SENTENCEPIECE
    try:
        model = json.loads((folder / TOKENIZER_FILE).read_text("utf-8"))["model"]
        # Files of the first versions leave it out, and only byte pair encoding was written by them.
        return str(model.get("type") or "BPE")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
