"""Programs and their conversations: LLaVA, LLaVA-NeXT, TinyLLaVA, and forks of them.

A fork takes flags with the same names, which may mean something else: it is always reported by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llava_recipes.errors import Mark, Problem
from llava_recipes.layouts import ALIASES, LAYOUTS, V1_SYSTEM
from llava_recipes.migrate.settings import Flags

Kind = Literal["llava", "next", "tiny", "fork"]

NEXT_FLAGS = (
    "mm_tunable_parts",
    "mm_vision_tower_lr",
    "unfreeze_mm_vision_tower",
    "unfreeze_language_model",
    "video_folder",
    "frames_upbound",
    "mm_resampler_type",
)
"""Flags of LLaVA-NeXT that LLaVA doesn't have."""

ANYRES_FLAGS = ("mm_patch_merge_type", "image_grid_pinpoints")
"""Flags that versions of LLaVA take too, but without `anyres`."""

OF_LLAVA_NEXT_ALONE = (
    *("mm_tunable_parts", "unfreeze_language_model", "video_folder"),
    *("frames_upbound", "mm_resampler_type", "mm_newline_position", "mm_spatial_pool_mode"),
    *("mm_spatial_pool_stride", "vision_tower_pretrained", "image_crop_resolution", "image_split_resolution"),
    *("group_by_varlen", "group_by_modality_length_auto", "add_time_instruction", "force_sample"),
)
"""Flags of LLaVA-NeXT that Open-LLaVA-NeXT doesn't have, which is made from LLaVA and pins its versions."""

TINY_FLAGS = (
    "conv_version",
    "connector_type",
    "training_recipe",
    "tune_type_llm",
    "tune_type_vision_tower",
    "tune_type_connector",
)
"""Flags that only TinyLLaVA has."""

LLAVA, NEXT, OPEN_NEXT, TINY = "LLaVA", "LLaVA-NeXT", "Open-LLaVA-NeXT", "TinyLLaVA"
OLD_TINY = "TinyLLaVA's first version"
"""Made from LLaVA, with its flags."""

_IMAGE_TOWERS = ("image_tower", "video_tower", "image_projector_type")
"""Flags of forks that have a tower for videos as well."""

_LLAVA_FILES = frozenset({"train.py", "train_mem.py", "train_xformers.py"})
_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "tinyllava": TINY,
        "videollava": "Video-LLaVA",
        "moellava": "MoE-LLaVA",
        "bunny": "Bunny",
        "mgm": "Mini-Gemini (MGM)",
        "minigemini": "Mini-Gemini (MGM)",
        "llamavid": "LLaMA-VID",
        "cambrian": "Cambrian",
        "ola_vlm": "OLA-VLM",
        "share4v": "ShareGPT4V",
        "llava_hr": "LLaVA-HR",
        "mobilevlm": "MobileVLM",
    }
)
"""Programs by the name of the folder around `train/`, unless it is `llava`."""

_FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "llava-next": NEXT,
        "open-llava-next": OPEN_NEXT,
        **{
            name.lower(): name
            for name in (
                *("ViP-LLaVA", "LLaVA-pp", "LLaVA-MORE", "LLaVA-Med", "LLaVA-HR", "LLaVA-Mini", "LLaVA-Plus"),
                *("ShareGPT4V", "OLA-VLM", "Video-LLaVA", "MoE-LLaVA", "Cambrian", "Bunny", "VILA"),
            )
        },
        "llava-pp-main": "LLaVA-pp",
        "visper-lm": "OLA-VLM",
        "ml-fastvlm": "FastVLM",
        "cambrian-main": "Cambrian",
    }
)
"""Programs whose package is called `llava` too, by the folder of the checkout."""

_BY_VERSION: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("qwen_1_5", "qwen_2", "gemma_instruct", "llava_mistral_instruct"), NEXT),
        **dict.fromkeys(("mistral_orca", "mistral_zephyr"), NEXT),
        **dict.fromkeys(("llava_llama_2_simple", "llava_llama_2_mmtag"), NEXT),
        **dict.fromkeys(("llama3", "phi3_instruct"), "LLaVA-pp"),
        **dict.fromkeys(("llama_3", "llama_3_1", "llama_3_1_reasoning", "phi_4", "gemma_2"), "LLaVA-MORE"),
        "llava_phi_3": "ViP-LLaVA",
    }
)
"""Programs whose package is called `llava` too, by a conversation that only they have."""

_PREFERENCES = re.compile(r"(?:^|[_.-])(?:dpo|ppo|grpo|orpo|kto|simpo|rlhf|reward|rm)(?:[_.-]|$)")


@dataclass(frozen=True)
class Program:
    """The program that a command starts."""

    name: str
    kind: Kind
    path: str
    """As in the script; empty for a file of flags."""
    is_known: bool = True
    """Whether its flags have the meaning that they are read with."""
    why: str = ""
    """The flag or folder that identifies it among programs of the same path; empty if the path does."""

    @property
    def shown(self) -> str:
        details = "; ".join(part for part in (self.path, self.why and f"by {self.why}") if part)
        return f"{self.name} ({details})" if details else self.name


@dataclass(frozen=True)
class Conversation:
    """The template with the same text, and the system prompt that this takes."""

    template: str
    system_prompt: str | None = None
    remark: str = ""


Table = Mapping[str, Conversation]

_OF_BOTH = (
    *("plain", "v0_plain", "default", "llava_v0", "v1", "vicuna_v1", "llava_v1", "llama_2", "llava_llama_2"),
    *("mistral_instruct", "mistral_direct", "chatml_direct", "mpt"),
)


def _table(names: Mapping[str, str], remark: str = "") -> dict[str, Conversation]:
    return {name: Conversation(template, remark=remark) for name, template in names.items()}


_BASE = _table({name: ALIASES.get(name, name) for name in _OF_BOTH})
_TAKES_V1 = "the original silently uses vicuna_v1 for `{}`"
_LLAVA: Table = MappingProxyType(
    {
        **_BASE,
        **_table({"v0_mmtag": "v0_mmtag", "v1_mmtag": "v1_mmtag"}),
        **{name: Conversation("v1", remark=_TAKES_V1.format(name)) for name in ("v0", "v0.5")},
    }
)
_NEXT: Table = MappingProxyType(
    {
        **_BASE,
        **_table(
            {
                "v0": "v0",
                "llava_v0_mmtag": "v0_mmtag",
                "llava_v1_mmtag": "v1_mmtag",
                "llava_mistral_instruct": "mistral_instruct",
                "llava_llama_3": "llama_3",
                "qwen_1_5": "qwen",
                "qwen_2": "qwen",
                "gemma_instruct": "gemma",
            }
        ),
        "v0.5": Conversation("v0", remark="LLaVA-NeXT silently uses `v0` for it"),
    }
)
_LLAMA_3_1_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def _ends(token: str) -> str:
    return f"Vicuna's conversation, with `{token}`, the end of text of its language models, after each answer"


def _vicunas(**names: str) -> dict[str, Conversation]:
    return {name: Conversation("v1", remark=_ends(token)) for name, token in names.items()}


_WITH_VICUNAS_PROMPT = Conversation("llama_3", V1_SYSTEM, "its system prompt is Vicuna's")
_OF_FORKS = {name: entry for name, entry in _LLAVA.items() if name not in ("v0", "v0.5", "default")}
"""Conversations of a fork that keeps LLaVA's table; its default is known from its code alone."""


def _without(*names: str) -> dict[str, Conversation]:
    return {name: entry for name, entry in _OF_FORKS.items() if name not in names}


_FORKS: Mapping[str, Table] = MappingProxyType(
    {
        "LLaVA-pp": {**_OF_FORKS, "llama3": _WITH_VICUNAS_PROMPT, **_table({"phi3_instruct": "phi3"})},
        "OLA-VLM": {
            **{name: _OF_FORKS[name] for name in ("v1", "vicuna_v1")},
            "llava_llama_3": _WITH_VICUNAS_PROMPT,
            **_table({"llava_phi_3": "phi3"}),
        },
        "LLaVA-MORE": {
            **_OF_FORKS,
            **_table({"llama_3": "llama_3", "gemma_2": "gemma"}),
            "llama_3_1": Conversation(
                "llama_3",
                _LLAMA_3_1_DATES + str(LAYOUTS["llama_3"].system),
                "Llama 3.1's own chat template writes the two dates before the system prompt",
            ),
        },
        "ViP-LLaVA": {
            **_OF_FORKS,
            **_table({"llava_llama_3": "llama_3"}),
            "llava_phi_3": Conversation("phi3", LAYOUTS["llama_3"].system, "with another system prompt"),
        },
        "FastVLM": {
            **_OF_FORKS,
            **_table({"qwen_2": "qwen", "qwen_1_5": "qwen", "llava_llama_3": "llama_3"}),
        },
        # Its `mistral_instruct` writes `<s>` before each turn, its `gemma` an `<eos>` after each answer, and
        # its `llama_3` the header of the system prompt before answers.
        "Mini-Gemini (MGM)": {**_without("mistral_instruct"), **_vicunas(phi_2="<|endoftext|>")},
        "LLaMA-VID": {name: _OF_FORKS[name] for name in ("llava_v0", "llava_v1", "vicuna_v1", "v1")},
        "Bunny": {
            "plain": _OF_FORKS["plain"],
            **_vicunas(bunny="<|endoftext|>", minicpm="</s>", llama="<|end_of_text|>"),
        },
        OLD_TINY: {**_OF_FORKS, **_vicunas(phi="<|endoftext|>")},
        "MoE-LLaVA": {
            **_without("mistral_instruct", "mistral_direct", "chatml_direct"),
            **_vicunas(
                phi="<|endoftext|>",
                qwen="<|endoftext|>",
                stablelm="<|endoftext|>",
                openchat="<|end_of_turn|>",
                mistral="</s>",
                minicpm="</s>",
            ),
        },
        # Its `chatml_direct` and `llama_3` have another system prompt, many lines long.
        "Cambrian": {
            **_without("chatml_direct", "mistral_direct", "llava_v1", "llava_llama_2", "llava_v0"),
            **_table({"phi3": "phi3"}),
        },
    }
)
_ANY_FORK: Table = MappingProxyType(
    {
        **_OF_FORKS,
        "llama3": _WITH_VICUNAS_PROMPT,
        **_table(
            {
                "phi3_instruct": "phi3",
                "qwen_1_5": "qwen",
                "qwen_2": "qwen",
                "gemma_instruct": "gemma",
                "llama_3": "llama_3",
                "llava_llama_3": "llama_3",
            },
            "by its name; the fork's text was not compared",
        ),
    }
)
CONVERSATIONS_OF_TINYLLAVA: Table = MappingProxyType(
    {
        "pretrain": Conversation("plain"),
        **_vicunas(
            llama="</s>",
            phi="<|endoftext|>",
            gemma="<eos>",
            qwen2_base="<|endoftext|>",
            qwen2_instruct="<|im_end|>",
        ),
    }
)


def identify(path: str, flags: Flags, script: str) -> Program:
    """The program by its path or, of several with one path, by a flag that only one of them has.

    The folder of the checkout, around the program or the script, identifies it too.
    """
    package, file, folders = _parts(path)
    folders = [*script.replace("\\", "/").lower().split("/")[:-1], *folders]
    tiny = _first(flags, TINY_FLAGS)
    if (package == "tinyllava" or package in ("", "llava")) and tiny:
        return Program(TINY, "tiny", path, not path or file == "train.py", f"`--{tiny}`")
    folder = next((folder for folder in reversed(folders) if folder in _FOLDERS), "")
    by_path, why = _PACKAGES.get(package), ""
    if by_path is None and folder:
        by_path, why = _FOLDERS[folder], f"the folder {folder}"
    if by_path == TINY and "version" not in flags:
        return Program(TINY, "tiny", path, is_known=file == "train.py")
    if by_path == TINY:
        return _fork(OLD_TINY, path, "`--version`")
    # Many programs have a train.py; the other two names are LLaVA's.
    is_llavas = package == "llava" or (not package and file != "train.py")
    if path and (not is_llavas or file not in _LLAVA_FILES):
        return _fork(by_path or f"a fork of {LLAVA}, or another program", path, why)
    if by_path in (NEXT, OPEN_NEXT):
        return Program(by_path, "next", path, why=why)
    return _fork(by_path, path, why) if by_path else _by_flags(path, flags)


def _first(flags: Flags, names: Iterable[str]) -> str:
    """The first of `names` that is among the flags, or nothing."""
    return next((name for name in names if name in flags), "")


def _fork(name: str, path: str, why: str = "") -> Program:
    return Program(name, "fork", path, is_known=False, why=why)


def refuse_preferences(path: str, mark: Mark) -> Problem | None:
    """The problem with a program that trains on preferences or rewards; None for any other."""
    _, file, _ = _parts(path)
    found = _PREFERENCES.search(file.lower().removesuffix(".py"))
    if found is None:
        return None
    return Problem(
        f"`{file}` trains on preferences or rewards, which recipes don't do",
        code="preference-training",
        mark=mark,
        found=path,
        hint="a recipe trains on the answers of its records; migrate the stage before, from its script or "
        "from this one with `--command N`",
    )


def _parts(path: str) -> tuple[str, str, list[str]]:
    """The package, the file and the folders around it, of a path or of a module after `-m`."""
    if path.endswith(".py"):
        names = path.replace("\\", "/").split("/")
    else:
        names = path.split(".")
        names[-1] += ".py"
    package = names[-3] if len(names) > 2 and names[-2] == "train" else ""
    if len(names) > 1 and not package:
        package = names[-2]
    return package, names[-1], [name.lower() for name in names[:-2]]


def _by_flags(path: str, flags: Flags) -> Program:
    """LLaVA, or a program with its package name and files."""
    given = ("version", "vision_tower", "image_aspect_ratio")
    version, tower, ratio = (flags[name].text if name in flags else "" for name in given)
    if tower.startswith("clip_4layers"):
        return _fork("ViP-LLaVA", path, f"`--vision_tower {tower}`")
    if name := _first(flags, _IMAGE_TOWERS):
        return _fork(f"Video-LLaVA, MoE-LLaVA or another fork of {LLAVA}", path, f"`--{name}`")
    if name := _first(flags, OF_LLAVA_NEXT_ALONE):
        return Program(NEXT, "next", path, why=f"`--{name}`")
    named, by_version = _BY_VERSION.get(version), f"`--version {version}`"
    if named == NEXT:
        return Program(NEXT, "next", path, why=by_version)
    if name := _first(flags, (*NEXT_FLAGS, *(ANYRES_FLAGS if ratio.startswith("anyres") else ()))):
        return Program(OPEN_NEXT, "next", path, why=f"`--{name}`")
    if named is not None:
        return _fork(named, path, by_version)
    if version == "llava_llama_3":
        return _fork(f"{OPEN_NEXT}, ViP-LLaVA or another fork of {LLAVA}", path, by_version)
    return Program(LLAVA, "llava", path)


def table_of(program: Program) -> Table:
    """A program's conversations by `--version`."""
    if program.kind == "next":
        return _NEXT
    return _LLAVA if program.kind == "llava" else _FORKS.get(program.name, _ANY_FORK)


def put_conversation(name: str, version: str, flags: Flags, *, program: Program, table: Table) -> None:
    """Put the template of the conversation that a flag names, or add the problem that there is none."""
    conversation = table.get(version)
    if conversation is None:
        found = f"--{name} {version}" + (f" of {program.path}" if program.path else "")
        what = f"the conversation `{version}` of {program.name}"
        flags.refuse_conversation(version, table, flags[name].value_mark, what=what, found=found)
        return
    if conversation.system_prompt is not None:
        flags.draft.put("data.system_prompt", conversation.system_prompt)
    flags.put(name, "data.template", conversation.template, conversation.remark)
