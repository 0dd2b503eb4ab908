"""Change single values in the text of a recipe, and leave the rest, comments included, as it stands.

The text is a template of ours: block style, one document, no anchors.
"""

from __future__ import annotations

import yaml

from llava_recipes.authoring.spell import spell
from llava_recipes.recipe.errors import KeyPath
from llava_recipes.recipe.scalars import Value

_STEP = "  "
_LONGEST_LIST = 80


def set_value(text: str, path: KeyPath, value: Value) -> str:
    """The text with the value at `path`, which is replaced, or added at the end of the mapping it belongs in.

    Parents that are not there yet are written with it. Raises LookupError for an entry that no list has.
    """
    found, node, rest = _walk(text, path)
    if not rest:
        parent = found[-1] if found else None
        return _replace(text, parent, node, path, value)
    if not isinstance(rest[0], str):
        raise LookupError(f"no entry {rest[0]} at {path}")
    for key in reversed(rest[1:]):
        value = {str(key): value}
    if isinstance(node, yaml.MappingNode) and not node.flow_style:
        return _append(text, node, rest[0], value)
    if isinstance(node, yaml.MappingNode):
        return _append_in_brackets(text, node, rest[0], value)
    return set_value(text, path[: len(path) - len(rest)], {rest[0]: value})


def remove_key(text: str, path: KeyPath) -> str:
    """The text without the lines of a key of a block mapping; the same text where it is not there."""
    found, node, rest = _walk(text, path)
    if rest:
        return text
    parent = found[-1]
    assert isinstance(parent, yaml.MappingNode) and not parent.flow_style
    key = next(key for key, value in parent.value if value is node)
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    return text[:start] + text[_line_end(text, _last_leaf(node)) :]


def value_text(text: str, path: KeyPath) -> str | None:
    """How a scalar is written, or None where there is none."""
    _, node, rest = _walk(text, path)
    return node.value if not rest and isinstance(node, yaml.ScalarNode) else None


def block_lines(value: Value, indent: str) -> list[str]:
    """A mapping or list in block style, one line for each entry; inner lists of words stay on one line."""
    if isinstance(value, dict):
        entries = [(f"{spell(key)}:", inner) for key, inner in value.items()]
    else:
        assert isinstance(value, list)
        entries = [("-", inner) for inner in value]
    lines: list[str] = []
    for lead, inner in entries:
        if lead == "-" and isinstance(inner, dict) and inner:
            first, *others = block_lines(inner, indent + _STEP)
            lines += [f"{indent}- {first.strip()}", *others]
        elif _needs_block(inner):
            lines += [f"{indent}{lead}", *block_lines(inner, indent + _STEP)]
        else:
            lines.append(f"{indent}{lead} {spell(inner)}")
    return lines


def _needs_block(value: Value) -> bool:
    """Whether a value is better written on lines of its own: mappings, and lists of them."""
    if isinstance(value, list):
        return any(isinstance(entry, dict) for entry in value) or len(spell(value)) > _LONGEST_LIST
    return isinstance(value, dict) and bool(value)


def _walk(text: str, path: KeyPath) -> tuple[list[yaml.Node], yaml.Node, KeyPath]:
    """The nodes on the way, the deepest one that is there, and what is left of the path."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert root is not None
    node: yaml.Node = root
    found: list[yaml.Node] = []
    for depth, segment in enumerate(path):
        inner = _step(node, segment)
        if inner is None:
            return found, node, path[depth:]
        found.append(node)
        node = inner
    return found, node, ()


def _step(node: yaml.Node, segment: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == segment), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(segment, int) and segment < len(node.value):
        entry: yaml.Node = node.value[segment]
        return entry
    return None


def _replace(text: str, parent: yaml.Node | None, node: yaml.Node, path: KeyPath, value: Value) -> str:
    end = _last_leaf(node)
    if isinstance(parent, yaml.MappingNode):
        key = next(key for key, inner in parent.value if inner is node)
        start = key.end_mark.index + 1
        if not parent.flow_style and _needs_block(value):
            lines = block_lines(value, " " * key.start_mark.column + _STEP)
            return text[:start] + "\n" + "\n".join(lines) + text[end:]
        spelled = f" {spell(value, in_brackets=bool(parent.flow_style))}"
        return text[:start] + spelled + _in_column(text[end:], end - start - len(spelled))
    return text[: node.start_mark.index] + spell(value, in_brackets=True) + text[end:]


def _in_column(rest: str, num_shorter: int) -> str:
    """The rest of a line, its comment in the column where it stood before the value changed its length."""
    comment = rest.lstrip(" ")
    num_spaces = len(rest) - len(comment)
    if not comment.startswith("#"):
        return rest
    return " " * max(1, num_spaces + num_shorter) + comment


def _append(text: str, mapping: yaml.MappingNode, key: str, value: Value) -> str:
    at = _line_end(text, _last_leaf(mapping))
    indent = " " * mapping.value[0][0].start_mark.column
    lines = block_lines({key: value}, indent)
    before = text[:at] if text[:at].endswith("\n") else text[:at] + "\n"
    return before + "\n".join(lines) + "\n" + text[at:]


def _append_in_brackets(text: str, mapping: yaml.MappingNode, key: str, value: Value) -> str:
    at = mapping.end_mark.index - 1
    comma = ", " if mapping.value else ""
    return f"{text[:at].rstrip()}{comma}{spell(key)}: {spell(value, in_brackets=True)}{text[at:]}"


def _last_leaf(node: yaml.Node) -> int:
    """Where the last word of a value ends; a block collection's own mark lies after the comments below it."""
    if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_leaf(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _line_end(text: str, at: int) -> int:
    """Where the line after position `at` begins."""
    newline = text.find("\n", at)
    return len(text) if newline < 0 else newline + 1
