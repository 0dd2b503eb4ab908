"""`--version`: what each program calls its conversations, and which of ours writes the same text.

The forks' tables were read in their `conversation.py`. A name whose text none of our templates writes is
refused: a template that is nearly the same trains another model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llava_recipes.layouts import ALIASES, LAYOUTS, V1_SYSTEM
from llava_recipes.migrate.programs import OLD_TINY, Program
from llava_recipes.migrate.settings import Flags


@dataclass(frozen=True)
class Conversation:
    """One of our templates, with the system prompt that makes its text the same."""

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
_TAKES_V1 = "the original takes vicuna_v1 for `{}`, without a word"
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
        "v0.5": Conversation("v0", remark="LLaVA-NeXT takes `v0` for it, without a word"),
    }
)
_LLAMA_3_1_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


def _ends(token: str) -> str:
    return f"Vicuna's conversation word for word, ended by `{token}`, the end of text of its language models"


def _vicunas(**names: str) -> dict[str, Conversation]:
    return {name: Conversation("v1", remark=_ends(token)) for name, token in names.items()}


_WITH_VICUNAS_PROMPT = Conversation("llama_3", V1_SYSTEM, "its system prompt is Vicuna's")
_OF_FORKS = {name: entry for name, entry in _LLAVA.items() if name not in ("v0", "v0.5", "default")}
"""What a fork that keeps LLaVA's table calls as LLaVA does; what its default is, only its code says."""


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
            "llava_phi_3": Conversation("phi3", LAYOUTS["llama_3"].system, "with a system prompt of its own"),
        },
        "FastVLM": {
            **_OF_FORKS,
            **_table({"qwen_2": "qwen", "qwen_1_5": "qwen", "llava_llama_3": "llama_3"}),
        },
        # Their `mistral_instruct` writes `<s>` before each turn, `gemma` an `<eos>` after each answer, and
        # `llama_3` gives answers the header of the system prompt.
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
        # Its `chatml_direct` and `llama_3` have a system prompt of their own, many lines long.
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
            "by its name; this fork's own text was not compared",
        ),
    }
)
TINYLLAVA: Table = MappingProxyType(
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


def table_of(program: Program) -> Table:
    """What a program calls its conversations by `--version`."""
    if program.kind == "next":
        return _NEXT
    return _LLAVA if program.kind == "llava" else _FORKS.get(program.name, _ANY_FORK)


def put_conversation(name: str, version: str, flags: Flags, *, program: Program, table: Table) -> None:
    """Our template for the conversation that a flag names, or the problem that there is none."""
    conversation = table.get(version)
    if conversation is None:
        found = f"--{name} {version}" + (f", and the program is {program.path}" if program.path else "")
        what = f"the conversation `{version}` of {program.name}"
        flags.refuse_conversation(version, table, flags[name].value_mark, what=what, found=found)
        return
    if conversation.system_prompt is not None:
        flags.draft.put("data.system_prompt", conversation.system_prompt)
    flags.put(name, "data.template", conversation.template, conversation.remark)
