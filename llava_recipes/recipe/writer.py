"""Write YAML: whole recipes, and edits of a text that keep its comments."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import yaml

from llava_recipes.errors import KeyPath
from llava_recipes.recipe.language import keys_at
from llava_recipes.recipe.scalars import Value, spell
from llava_recipes.recipe.schema import Recipe
from llava_recipes.recipe.source import parse_value
from llava_recipes.screen import escape_yaml, shown

_STEP = "  "
_LONGEST_LIST = 80
_MIGRATED_COLUMN = 43
_WIDEST_COLUMN = 72


def block_lines(
    value: Value, indent: str = "", *, short_lists: bool = True, portable: bool = False
) -> list[str]:
    """The lines of a mapping or list in block style.

    short_lists  write short lists without mappings on one line
    portable     spell numbers so that YAML 1.1 reads them as numbers too
    """
    if isinstance(value, dict):
        entries = [(f"{spell(key)}:", inner) for key, inner in value.items()]
    else:
        assert isinstance(value, list)
        entries = [("-", inner) for inner in value]
    lines: list[str] = []
    for lead, inner in entries:
        below = indent + _STEP
        if not _needs_block(inner, short_lists=short_lists or lead == "-"):
            lines.append(f"{indent}{lead} {spell(inner, portable=portable)}")
        elif lead == "-":
            first, *others = block_lines(inner, below, short_lists=short_lists, portable=portable)
            lines += [f"{indent}- {first.strip()}", *others]
        else:
            inner_lines = block_lines(inner, below, short_lists=short_lists, portable=portable)
            lines += [f"{indent}{lead}", *inner_lines]
    return lines


def _needs_block(value: Value, *, short_lists: bool = True) -> bool:
    """Whether a value needs lines of its own: a mapping, a long list, or one with mappings."""
    if not isinstance(value, list) or not value:
        return isinstance(value, dict) and bool(value)
    has_mappings = any(isinstance(entry, dict) for entry in value)
    return not short_lists or has_mappings or len(spell(value)) > _LONGEST_LIST


def in_order(value: Value, path: KeyPath = ()) -> Value:
    """The values of a recipe with keys in the order of the recipe language, unknown ones last."""
    if isinstance(value, list):
        return [in_order(entry, (*path, index)) for index, entry in enumerate(value)]
    if not isinstance(value, dict):
        return value
    ranks = {key: rank for rank, key in enumerate(keys_at(path))}
    keys = sorted(value, key=lambda key: ranks.get(key, len(ranks)))
    return {key: in_order(value[key], (*path, key)) for key in keys}


def add_remarks(text: str, remarks: Mapping[int, str], *, column: int) -> str:
    """The text with remarks after its lines, by line number, at `column` or after a longer line."""
    return "".join(
        f"{line:<{column}}  # {remarks[number]}\n" if number in remarks else f"{line}\n"
        for number, line in enumerate(text.rstrip("\n").split("\n"), 1)
    )


def write_recipe(values: Mapping[str, Value], comments: Mapping[KeyPath, str], header: str) -> str:
    """A recipe with `comments` after the lines of their keys, and `header` at the top.

    A `${` in a value is written literally.
    """
    lines = block_lines(in_order(_literal(dict(values))))
    places = parse_value("\n".join(lines), "").key_marks
    remarks = {places[path].line: shown(comment) for path, comment in comments.items() if path in places}
    text = add_remarks("\n".join(lines), remarks, column=_MIGRATED_COLUMN)
    head = "".join(f"# {shown(line)}".rstrip() + "\n" for line in header.split("\n"))
    return escape_yaml(head + re.sub(r"^(?=model:|stages:)", "\n", text, flags=re.MULTILINE))


def write_values(values: Value) -> str:
    """The values as YAML, each on its own line, for programs too: PyYAML reads `2e-5` as a string."""
    return escape_yaml("\n".join(block_lines(values, short_lists=False, portable=True)) + "\n")


def write_resolved(recipe: Recipe) -> str:
    """A recipe as one complete file, itself a recipe, with parents, variables, overrides and defaults.

    Variables are already filled in, so a remaining `${` is written literally.
    """
    values = recipe.model_dump(mode="json", exclude_none=True, exclude={"extends", "env", "vars"})
    for part in (values["model"]["language_model"], values["model"]["vision_tower"]):
        # Pretrained weights have no seed, and a recipe with one for them is refused.
        if isinstance(part, dict) and "source" in part:
            del part["seed"]
        if isinstance(part, dict) and (part.get("quantization") or {}).get("bits") == 8:
            part["quantization"] = {"bits": 8}
    for stage, written in zip(recipe.stages, values["stages"], strict=True):
        for strategy, steps in (("eval_strategy", "eval_steps"), ("save_strategy", "save_steps")):
            # A default that has no effect would be reported as if somebody had written it.
            if getattr(stage.train, strategy) != "steps" and steps not in stage.train.model_fields_set:
                del written["train"][steps]
    return write_values(_literal(values))


def write_with_remarks(recipe: Recipe, remark: Callable[[KeyPath], str]) -> str:
    """The text of `write_resolved` with a remark after each value."""
    text = write_resolved(recipe)
    places = parse_value(text, "").value_marks
    inner = {path[:-1] for path in places if path}
    remarks = {mark.line: remark(path) for path, mark in places.items() if path not in inner}
    column = min(max(map(len, text.split("\n"))), _WIDEST_COLUMN)
    return add_remarks(text, remarks, column=column)


def _literal(value: Value) -> Value:
    """The value, escaped so that nothing in it is read as a variable."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    return [_literal(inner) for inner in value] if isinstance(value, list) else value


def set_value(text: str, path: KeyPath, value: Value) -> str:
    """The text with the value at `path`, replaced, or added at the end of its mapping.

    The text is one of our own templates: block style, one document, no anchors. Missing parents are added.
    Raises LookupError for an entry that a list does not have.
    """
    found, node, rest = _walk(text, path)
    if not rest:
        parent = found[-1] if found else None
        return _replace(text, parent, node, value)
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
    """The text without the lines of a key of a block mapping; the same text if there is no such key."""
    found, node, rest = _walk(text, path)
    if rest:
        return text
    parent = found[-1]
    assert isinstance(parent, yaml.MappingNode) and not parent.flow_style
    key = next(key for key, value in parent.value if value is node)
    start = text.rfind("\n", 0, key.start_mark.index) + 1
    return text[:start] + text[_line_end(text, _last_leaf(node)) :]


def value_text(text: str, path: KeyPath) -> str | None:
    """The text of the scalar at a path, or None if there is none."""
    _, node, rest = _walk(text, path)
    return node.value if not rest and isinstance(node, yaml.ScalarNode) else None


def _walk(text: str, path: KeyPath) -> tuple[list[yaml.Node], yaml.Node, KeyPath]:
    """The nodes along the path, the deepest one that exists, and the rest of the path."""
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


def _replace(text: str, parent: yaml.Node | None, node: yaml.Node, value: Value) -> str:
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
    """The rest of a line, with its comment in the same column as before the value changed."""
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
    """The end of the last word of a value; a block collection's own mark is after the comments below it."""
    if isinstance(node, (yaml.MappingNode, yaml.SequenceNode)) and not node.flow_style and node.value:
        last = node.value[-1]
        return _last_leaf(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _line_end(text: str, at: int) -> int:
    """The start of the line after position `at`."""
    newline = text.find("\n", at)
    return len(text) if newline < 0 else newline + 1
