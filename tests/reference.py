"""docs/reference.md from the schema: written by `make names`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llava_recipes.authoring.explanation import example_lines, origin
from llava_recipes.recipe.keys import Key
from llava_recipes.recipe.language import schema_keys

HOW_TO = "make names"
_HEAD = f"""\
<!-- Generated: do not edit. After a change of the schema: {HOW_TO} -->

# Reference of the recipe language

Every key, from the descriptions in the schema. [Recipe language](recipes.md) explains how they work
together, and `llava-recipe explain KEY` prints one of them. `[]` stands for the entries of a list. Instead of
a value, `${{name}}` inserts a variable.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    keys = schema_keys()
    top = [key for key in keys if "." not in key.path]
    mappings = [key for key in keys if any(other.names[:-1] == key.names for other in keys)]
    parts = [_HEAD, *_contents(mappings), "\n## The top level\n", _table(top), *_details(top)]
    for mapping in mappings:
        children = [key for key in keys if key.names[:-1] == mapping.names]
        parts += [f"\n## {mapping.path}\n", f"{mapping.meaning}\n", _table(children), *_details(children)]
    return "\n".join(parts).rstrip("\n") + "\n"


def _contents(mappings: Sequence[Key]) -> Iterator[str]:
    yield "- [The top level](#the-top-level)"
    for mapping in mappings:
        yield f"- [{mapping.path}](#{_anchor(mapping.path)})"


def _anchor(title: str) -> str:
    """The anchor that Markdown viewers give a heading."""
    return "".join(character for character in title.lower() if character.isalnum() or character in "_-")


def _table(keys: Sequence[Key]) -> str:
    rows = [
        f"| `{key.name}` | {_cell(key.type)} | {_cell(key.default_text)} | {_cell(key.meaning)} |"
        for key in keys
    ]
    return "\n".join(("| key | type | default | meaning |", "|---|---|---|---|", *rows))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _details(keys: Sequence[Key]) -> Iterator[str]:
    """The sources of keys, and the examples that the schema has."""
    rows = [
        f"- `{key.name}`: {origin(key.path)}" for key in keys if "recipe language" not in origin(key.path)
    ]
    if rows:
        yield "\n".join(("\nWhere they come from:\n", *rows))
    for key in keys:
        lines = example_lines(key) if key.examples else []
        if lines:
            yield "\n".join(("\n```yaml", *lines, "```"))
