"""A language model in few bits: `--bits` and what belongs to it."""

from __future__ import annotations

from llava_recipes.migrate.draft import MODEL, Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.recipe.errors import KeyPath, Mark
from llava_recipes.recipe.scalars import Value

_LANGUAGE_MODEL: KeyPath = (MODEL, "language_model")
_PATH: KeyPath = (*_LANGUAGE_MODEL, "quantization")
_PARTS = (("quant_type", "type", "nf4"), ("double_quant", "double_quant", True))
"""Flags of 4 bits, their keys, and the defaults that LLaVA and TinyLLaVA have."""


def put_bits(draft: Draft, name: str, shown: str, bits: int, *, mark: Mark | None, remark: str = "") -> None:
    """The setting that holds the language model's weights in 4 or 8 bits."""
    source = draft.read(*map(str, _LANGUAGE_MODEL))
    if not isinstance(source, dict):
        draft.put(_LANGUAGE_MODEL, {} if source is None else {"source": source})
    draft.mapped(name, shown, (*_PATH, "bits"), bits, remark=remark, mark=mark)


def put_part(draft: Draft, name: str, shown: str, key: str, value: Value, *, mark: Mark | None) -> None:
    """A setting beside the bits: `type` or `double_quant`."""
    draft.mapped(name, shown, (*_PATH, key), value, mark=mark)


def default_part(draft: Draft, name: str, key: str, value: Value) -> None:
    """What a setting beside the bits was where it is left out."""
    draft.default(name, (*_PATH, key), value)


def translate_quantization(flags: Flags, draft: Draft, *, recipe_bits: int | None = None) -> None:
    """`--bits` and its flags; `recipe_bits` are those that another flag has set."""
    bits = flags.whole("bits")
    if recipe_bits is not None:
        if bits is not None:
            why = f"`--training_recipe` says {recipe_bits} bits"
            (draft.needless if bits in (16, recipe_bits) else draft.lost)(
                "--bits", str(bits), why, flags["bits"].mark
            )
        bits = recipe_bits
    elif bits in (4, 8):
        put_bits(draft, "--bits", str(bits), bits, mark=flags["bits"].mark)
    elif bits in (16, 32):
        why = "16 and 32 bits are what `bf16` and `fp16` say"
        draft.needless("--bits", str(bits), why, flags["bits"].mark)
    elif bits is not None:
        draft.lost("--bits", str(bits), "recipes know 4, 8, 16 and 32 bits", flags["bits"].mark)
    _translate_parts(flags, draft, bits)


def _translate_parts(flags: Flags, draft: Draft, bits: int | None) -> None:
    for name, key, default in _PARTS:
        if bits != 4:
            flag = flags.take(name)
            if flag is not None:
                tell = draft.needless if bits in (None, 8, 16, 32) else draft.lost
                tell(f"--{name}", flag.text, "it goes with 4 bits", flag.mark)
            continue
        value: Value = flags.switch(name) if isinstance(default, bool) else flags.text(name)
        if value is not None:
            mark = flags[name].mark
            put_part(draft, f"--{name}", flags[name].text or "True", key, value, mark=mark)
        elif name not in flags:
            default_part(draft, f"--{name}", key, default)
