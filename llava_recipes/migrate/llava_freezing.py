"""What trains: LLaVA's switches and LLaVA-NeXT's list of parts, as `freeze` and `trainable`."""

from __future__ import annotations

from llava_recipes.migrate.draft import MODEL, STAGE, Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.migrate.llava_pictures import has_newline

_PARTS = {
    "mm_mlp_adapter": ["projector"],
    "mm_vision_tower": ["vision_tower"],
    "mm_language_model": ["language_model", "lm_head"],
}
_SWITCHES = (
    "tune_mm_mlp_adapter",
    "freeze_mm_mlp_adapter",
    "freeze_backbone",
    "unfreeze_mm_vision_tower",
    "unfreeze_language_model",
)
_ORDER = (
    *("projector", "image_tokens", "language_model", "image_newline", "lm_head"),
    "vision_tower",
)


def translate_freezing(flags: Flags, draft: Draft, *, lora: bool) -> None:
    """Fill in `freeze` and `trainable`. With adapters the language model's own weights stay frozen."""
    switches = {name: flags.switch(name) for name in _SWITCHES}
    parts = flags.text("mm_tunable_parts")
    path = (STAGE, "trainable")
    if parts is not None:
        trained = _tunable_parts(parts, flags, draft)
    else:
        trained = _switched(switches, draft, lora=lora)
    if has_newline(flags) and trained & {"language_model"}:
        # To the program it is a parameter like those of the language model.
        trained.add("image_newline")
    draft.put((STAGE, "freeze"), "all")
    draft.put(path, [name for name in _ORDER if name in trained])
    if parts is not None:
        draft.tell_mapped("--mm_tunable_parts", parts, path, mark=flags["mm_tunable_parts"].mark)
    elif not any(switches.values()):
        remark = "" if lora else "all but the vision tower"
        draft.default("what trains", path, draft.read(*path), remark=remark)
    for name, value in switches.items():
        if value is None:
            continue
        flag = flags[name]
        if parts is not None:
            draft.needless(f"--{name}", flag.text, "`mm_tunable_parts` goes before it", flag.mark)
        else:
            draft.tell_mapped(f"--{name}", flag.text or "True", path, mark=flag.mark)
    if lora and switches["tune_mm_mlp_adapter"] and parts is None:
        _drop_adapters(flags, draft)


def _switched(switches: dict[str, bool | None], draft: Draft, *, lora: bool) -> set[str]:
    if switches["tune_mm_mlp_adapter"]:
        trained = {"projector"}
        if draft.read(MODEL, "image_tokens", "start_end") is True:
            # For the sake of these two the original sets all embeddings to train, and keeps the two.
            trained.add("image_tokens")
    elif lora:
        trained = {"projector"}
    else:
        # `freeze_backbone` of the original freezes the decoder alone: its head goes on learning.
        trained = {"projector", "lm_head"} | (set() if switches["freeze_backbone"] else {"language_model"})
    if switches["freeze_mm_mlp_adapter"]:
        trained.discard("projector")
    if switches["unfreeze_mm_vision_tower"]:
        trained.add("vision_tower")
    if switches["unfreeze_language_model"]:
        trained |= {"language_model", "lm_head"}
    return trained


def _tunable_parts(parts: str, flags: Flags, draft: Draft) -> set[str]:
    trained: set[str] = set()
    for part in (name.strip() for name in parts.split(",")):
        if part in _PARTS:
            trained.update(_PARTS[part])
        else:
            mark = flags["mm_tunable_parts"].mark
            draft.lost("--mm_tunable_parts", part, "recipes have no such module", mark)
    return trained


def _drop_adapters(flags: Flags, draft: Draft) -> None:
    stage = draft.values[STAGE]
    assert isinstance(stage, dict)
    stage.pop("lora", None)
    draft.entries = [entry for entry in draft.entries if not entry.key.startswith("lora.")]
    why = "`tune_mm_mlp_adapter` freezes the adapters too, so that they never train"
    draft.needless("--lora_enable", "True", why, flags["lora_enable"].mark)
