"""The data sets that an XTuner config trains on, one or several put together, as `data`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llava_recipes.migrate.draft import MODEL, STAGE
from llava_recipes.migrate.known_data import known_num_samples
from llava_recipes.migrate.python_config import PythonConfig, PythonValue, Symbol
from llava_recipes.migrate.xtuner_reader import Reader
from llava_recipes.migrate.xtuner_rest import spell_python
from llava_recipes.plan.catalog import VISION_TOWERS
from llava_recipes.recipe.errors import KeyPath, Problem
from llava_recipes.recipe.scalars import Value, say_number

TEMPLATES = {"vicuna": "v1", "llama3_chat": "llama_3", "qwen_chat": "qwen", "phi3_chat": "phi3"}
_SHARED: tuple[tuple[tuple[str, ...], KeyPath], ...] = (
    (("template_map_fn", "template"), (STAGE, "data", "template")),
    (("pad_image_to_square",), (STAGE, "data", "image_aspect_ratio")),
    (("max_length",), (STAGE, "data", "max_length")),
)
"""Settings of a data set that recipes have once for a stage."""
MAX_SETS = 200
_MAX_DEEP = 6

Set = tuple[str, dict[str, PythonValue]]
"""The name that the config gives a set, or its place, and its settings."""


def find_sets(config: PythonConfig) -> list[Set]:
    """What the loader draws from; for a config without one, what it calls `llava_dataset`."""
    loader = config.values.get("train_dataloader")
    dataset = loader.get("dataset") if isinstance(loader, dict) else None
    place = "train_dataloader.dataset"
    if not isinstance(dataset, dict):
        dataset, place = config.values.get("llava_dataset"), "llava_dataset"
    found: list[Set] = []
    for entry in _inside(dataset, place, config, 0):
        found.append(entry)
        if len(found) >= MAX_SETS:
            break
    return found


def _inside(value: PythonValue, place: str, config: PythonConfig, depth: int) -> Iterator[Set]:
    if not isinstance(value, dict) or depth > _MAX_DEEP:
        return
    name = next((name for name, other in config.values.items() if other is value), place)
    parts = value.get("datasets")
    kind = value.get("type")
    if isinstance(parts, list) and isinstance(kind, Symbol) and kind.name.endswith("ConcatDataset"):
        for number, part in enumerate(parts):
            yield from _inside(part, f"{name}.datasets[{number}]", config, depth + 1)
        return
    yield name, value


def translate_data(reader: Reader) -> None:
    """Fill in `data`; the vision tower is filled in before, since images count as tokens."""
    sets = find_sets(reader.config)
    path = (STAGE, "data", "sources")
    sources: list[Value] = []
    for number, (name, values) in enumerate(sets):
        source: dict[str, Value] = {}
        for setting, key in (("data_path", "annotations"), ("image_folder", "images")):
            value = reader.known(values.get(setting), f"{name}.{setting}")
            if isinstance(value, str):
                source[key] = value
                mark = reader.mark(name)
                reader.draft.tell_mapped(f"{name}.{setting}", value, (*path, number, key), mark=mark)
        count = known_num_samples(str(source.get("annotations", "")))
        if count is not None:
            source["num_samples"] = count
        if source:
            sources.append(source)
    if sources:
        reader.draft.put(path, sources)
    _sampler(reader)
    if not sets:
        return
    (name, first), *others = sets
    _template(reader, f"{name}.template_map_fn.template", _value_in(first, "template_map_fn", "template"))
    pads = reader.known(first.get("pad_image_to_square"), f"{name}.pad_image_to_square")
    path = (STAGE, "data", "image_aspect_ratio")
    if pads is None:
        reader.draft.default(f"{name}.pad_image_to_square", path, "square")
    else:
        shape = "pad" if pads is True else "square"
        reader.draft.mapped(f"{name}.pad_image_to_square", str(pads is True), path, shape)
    _length(reader, f"{name}.max_length", first.get("max_length"))
    for other, values in others:
        _tell_shared(reader, other, values, name, first)


def _tell_shared(
    reader: Reader, other: str, values: Mapping[str, PythonValue], name: str, first: Mapping[str, PythonValue]
) -> None:
    """What a stage has once: the same in each of its sets, or lost."""
    for keys, path in _SHARED:
        dotted = ".".join(keys)
        value, usual = _value_in(values, *keys), _value_in(first, *keys)
        if value == usual:
            if value is not None:
                why = f"as `{name}.{dotted}`"
                reader.draft.needless(f"{other}.{dotted}", spell_python(value), why, reader.mark(other))
            continue
        has = "leaves it out" if usual is None else f"has {spell_python(usual)}"
        why = f"a stage has one, and `{name}` {has}"
        reader.draft.lost(f"{other}.{dotted}", spell_python(value), why, reader.mark(other), path=path)


def _template(reader: Reader, name: str, found: PythonValue) -> None:
    template = reader.known(found, name)
    if template is None:
        return
    shown, path = spell_python(template), (STAGE, "data", "template")
    word = shown.rpartition(".")[2]
    ours = TEMPLATES.get(word)
    if ours is None:
        reader.draft.problems.append(
            Problem(
                f"recipes have no template for XTuner's `{word}`",
                code="unknown-conversation",
                mark=reader.mark(name),
                found=f"{name} = {shown}",
                hint=f"if one of these writes the same text, put it there: {', '.join(TEMPLATES)}",
            )
        )
        return
    reader.draft.put(path, ours)
    why = f"XTuner writes no system prompt before the first turn; `{ours}` writes one"
    reader.draft.lost(name, shown, why, reader.mark(name), path=path)


def _length(reader: Reader, name: str, found: PythonValue) -> None:
    length = reader.known(found, name)
    if not isinstance(length, int | float) or isinstance(length, bool):
        return
    source = reader.draft.read(MODEL, "vision_tower", "source")
    tower = VISION_TOWERS.get(source) if isinstance(source, str) else None
    path = (STAGE, "data", "max_length")
    if tower is None:
        why = "XTuner counts without the image, whose tokens are not known here: add them"
        reader.draft.lost(name, str(length), why, path=path)
        reader.draft.put(path, int(length))
        return
    side = _whole(tower.get("image_size")) // max(1, _whole(tower.get("patch_size")))
    total = int(length) + side * side
    remark = f"XTuner counts without the image: {side * side} tokens more"
    reader.draft.mapped(name, say_number(length), path, total, remark=remark)


def _sampler(reader: Reader) -> None:
    name = "train_dataloader.sampler"
    kind = reader.symbol(f"{name}.type")
    path = (STAGE, "data", "group_by")
    if kind == "LengthGroupedSampler":
        word = reader.text(f"{name}.length_property") or "length"
        reader.draft.mapped(f"{name}.length_property", word, path, word)
    elif reader.look_up(f"{name}.shuffle") is False:
        reader.draft.mapped(f"{name}.shuffle", "False", (STAGE, "data", "shuffle"), False)


def _value_in(values: Mapping[str, PythonValue], *keys: str) -> PythonValue:
    """A value by its keys, None where there is none."""
    place: PythonValue = dict(values)
    for key in keys:
        place = place.get(key) if isinstance(place, dict) else None
    return place


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
