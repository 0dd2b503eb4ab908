"""What an export may publish of a run: hub ids and ordinary text, and of places the last name alone.

A place is a path of a machine, or an address that isn't public: with a user, a password or a query, or with a
scheme other than http and https.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

from pydantic import JsonValue

from llava_recipes.files import expanded
from llava_recipes.plan.types import ModelPlan
from llava_recipes.recipe.locations import HUB_ID

_ABSOLUTE = re.compile(r"(/|~|\.\.?/|[A-Za-z]:[\\/]|\\\\|file://)")

_MODELS = frozenset({"language_model", "vision_tower", "source", "tokenizer"})
"""Keys of a recipe with a hub id or a path."""
_FILES = frozenset({"annotations", "images", "init_from", "deepspeed", "extends"})
"""Keys of a recipe with a path, or with a name that has no slash."""
_FILE_KEY = re.compile(r"(.*_)?(path|paths|dir|dirs|file|files|folder|directory)")
_TEXTS = frozenset({"name", "prompt", "system_prompt", "chat_template"})
"""Keys of a recipe with text for people or the model; any other value that begins with a place is that place,
including its spaces."""

_ADDRESS = r"[A-Za-z][A-Za-z0-9+.-]*:(?://|\\\\)"
_HOMES = r"(?:home|users|root|mnt|media|scratch|private|workspace|volumes)"
_START = (
    # ~/x, ~bob/x, ./x, ../x
    r"(?<![\w.~/\\])(?:~(?:[A-Za-z_][^\s/\\]*)?|\.{1,2})[/\\]"
    # C:\x, C:/x
    r"|(?<![^\W_])[A-Za-z]:[\\/]"
    # \\server\x
    r"|(?<!\\)\\\\(?=[^\s\\]+\\)"
    # /x/y; one name alone is more often a word (/no_think, </s>)
    r"|(?<![\w.)}%$/<])/+(?=NAME/)"
    # The usual beginnings, after any character.
    rf"|/+(?i:{_HOMES})/"
    # A name and a password before a machine's name, and scp's way to write a path there.
    r"|(?<![^\s\"'`=,;(])[A-Za-z_][^\s/@:\"'`=]*:[^\s/@]+@(?=\S)"
    r"|(?<![^\s\"'`=,;(])[\w.-]+@[\w.-]+:(?=\S)"
)
_LETTER = r"(?:(?!,\w+=)[^\s<>|])"
# In text, a word with a slash continues a path with a space; in options, all up to the next option does.
_IN_TEXT = rf"{_LETTER}*(?:\ [^\s/\\<>|]+[/\\]{_LETTER}*)*"
_IN_OPTIONS = r"(?:(?!,\w+=|\s+-|\s+\w+=)[^\n<>|])*"
_LONGEST = 1000
"""Longest place in quotes, in characters: the limit for finding the closing quote."""
_SPACED = _START.replace("NAME", r"[^\s/<>][^\n/<>]*")
_WHOLE = re.compile(rf"\s*(?:{_ADDRESS}|{_SPACED})")
_OPEN_ADDRESS = re.compile(r"https?://[^\s/?#@\\:]+(?::\d+)?(?:/[^\s?#]*)?", re.IGNORECASE)
_BARE_HOME = re.compile(r"(?:(?:[A-Za-z]:)?[\\/]+(?:home|users)[\\/]+[^\\/]+|~[^\\/]*)[\\/]*", re.IGNORECASE)


def _places(start: str, rest: str) -> re.Pattern[str]:
    end = r"(?P=quote)(?=$|[\s,;:)\]}])"
    return re.compile(
        # In quotes, up to the second one and with spaces.
        rf"(?P<quote>[\"'`])(?P<quoted>(?:{_ADDRESS}|{_SPACED})(?:(?!{end})[^\n]){{0,{_LONGEST}}}){end}"
        rf"|(?P<address>{_ADDRESS}{_LETTER}+)|(?P<path>(?:{start}){rest})"
    )


_TEXT_PLACE = _places(_START.replace("NAME", r"[^\s/<>]+"), _IN_TEXT)
_OPTION_PLACE = _places(_SPACED, _IN_OPTIONS)


def is_hub_id(source: str, *, folders: frozenset[str] = frozenset()) -> bool:
    """Whether a source looks like `owner/name` and is neither among `folders` nor an existing folder."""
    looks_like_one = "/" in source and HUB_ID.fullmatch(source) is not None
    return looks_like_one and source not in folders and not Path(source).exists()


def opened_as_folders(said: ModelPlan, opened: ModelPlan) -> frozenset[str]:
    """The sources of a plan that were folders when the model was opened; they may look like hub ids.

    said    the plan as the run wrote it
    opened  the same plan as it is read here, with relative folders at their present place
    """
    pairs = zip(_sources(said), _sources(opened), strict=True)
    return frozenset(ours for ours, now in pairs if ours and now and expanded(now).is_dir())


def _sources(plan: ModelPlan) -> tuple[str | None, ...]:
    language = plan.language_model
    return (language.source, language.tokenizer, plan.vision_tower.source, plan.projector.init_from)


def public_name(source: str, *, folders: frozenset[str] = frozenset()) -> str:
    """A hub id, or the last name of a local path."""
    return source if is_hub_id(source, folders=folders) else last_part(source)


def last_part(place: str) -> str:
    """The last name of a path of any system, or of an address without its query."""
    place = place.strip()
    if _BARE_HOME.fullmatch(place):
        return "~"
    address = re.match(rf"{_ADDRESS}[^/\\]*", place)
    if address is not None:
        # Nothing is left of an address without a path.
        place = re.split(r"[?#]", place[address.end() :])[0]
    kind = PureWindowsPath if "\\" in place else PurePosixPath
    name = kind(place).name or "."
    # scp's `user@machine:name`, and a password without a scheme before it.
    return name.rpartition("@")[2].rpartition(":")[2] or "." if "@" in name else name


def public_text(text: str) -> str:
    """A text with each place replaced by its last name."""
    return _shortened(text, _TEXT_PLACE)


def _shortened(text: str, places: re.Pattern[str]) -> str:

    def shorten(found: re.Match[str]) -> str:
        if found["address"] is not None:
            is_open = _OPEN_ADDRESS.fullmatch(found["address"].rstrip("\"'`.,;)"))
            return found[0] if is_open else last_part(found["address"])
        if found["quoted"] is not None:
            is_open = _OPEN_ADDRESS.fullmatch(found["quoted"])
            return found[0] if is_open else found["quote"] + last_part(found["quoted"]) + found["quote"]
        return last_part(found["path"])

    return places.sub(shorten, text)


def without_paths(settings: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """A tokenizer's settings without former places of its files, which nothing reads."""
    return {
        key: value
        for key, value in settings.items()
        if not (isinstance(value, str) and _ABSOLUTE.match(value) and "\n" not in value)
        or key == "chat_template"
    }


def public_values(value: JsonValue, key: str = "", *, folders: frozenset[str] = frozenset()) -> JsonValue:
    """A recipe's values without paths of the machine."""
    if isinstance(value, Mapping):
        return {
            public_text(name): public_values(inner, name, folders=folders) for name, inner in value.items()
        }
    if isinstance(value, list):
        return [public_values(inner, key, folders=folders) for inner in value]
    if not isinstance(value, str):
        return value
    if key in _MODELS:
        return public_name(value, folders=folders)
    if key in _FILES or _FILE_KEY.fullmatch(key):
        return last_part(value)
    if key in _TEXTS:
        return public_text(value)
    is_place = "\n" not in value and _WHOLE.match(value) and not _OPEN_ADDRESS.fullmatch(value)
    return last_part(value) if is_place else _shortened(value, _OPTION_PLACE)
