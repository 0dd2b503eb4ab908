"""`--data_path` and `--image_folder`, also where one path stands for several files as in LLaVA-NeXT."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llava_recipes.migrate.deepspeed_files import ReadText
from llava_recipes.migrate.draft import STAGE, Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.migrate.known_data import known_num_samples
from llava_recipes.recipe.errors import RecipeError
from llava_recipes.recipe.scalars import Value
from llava_recipes.recipe.source import parse_value

_BRACES = re.compile(r"(.*)\{(.*)\}\.json", re.DOTALL)
_KEYS = {"json_path": "annotations", "sampling_strategy": "sampling_strategy"}


@dataclass(frozen=True)
class Mix:
    """The sources that a path stands for, without their images, and keys of the list that have no place."""

    sources: tuple[dict[str, Value], ...]
    lost: tuple[str, ...] = ()


def translate_sources(flags: Flags, draft: Draft, read_text: ReadText) -> None:
    """`--data_path` and `--image_folder`, which LLaVA and TinyLLaVA call by the same names."""
    annotations, images = flags.text("data_path"), flags.text("image_folder")
    path = (STAGE, "data", "sources")
    if annotations is None and images is None:
        return
    sources = _sources_of(annotations, flags, draft, read_text)
    for number, source in enumerate(sources):
        if images is not None:
            source["images"] = images
        count = known_num_samples(str(source.get("annotations", "")))
        if count is not None:
            source["num_samples"] = count
            comment = "known by the file's name; checked when it is read"
            draft.comments[(*path, number, "num_samples")] = comment
    draft.put(path, list[Value](sources))
    place = path if len(sources) > 1 else (*path, 0)
    if annotations is not None:
        where = place if len(sources) > 1 else (*place, "annotations")
        draft.tell_mapped("--data_path", annotations, where, mark=flags["data_path"].mark)
    if images is not None:
        where = place if len(sources) > 1 else (*place, "images")
        draft.tell_mapped("--image_folder", images, where, mark=flags["image_folder"].mark)


def _sources_of(
    annotations: str | None, flags: Flags, draft: Draft, read_text: ReadText
) -> list[dict[str, Value]]:
    """An entry for each file that `--data_path` stands for."""
    if annotations is None:
        return [{}]
    mix = names_in_braces(annotations)
    is_list = annotations.endswith((".yaml", ".yml"))
    if is_list:
        text = read_text(annotations)
        mix = None if text is None else read_mix(text, annotations)
    if mix is None and (is_list or "{" in annotations or annotations.endswith(".txt")):
        why = "it stands for several files: write each as an entry of `sources:`"
        draft.lost("--data_path", annotations, why, flags["data_path"].mark)
    if mix is None:
        return [{"annotations": annotations}]
    for key in mix.lost:
        why = f"`{key}` of its data sets has no place in a source"
        draft.lost("--data_path", annotations, why, flags["data_path"].mark)
    return [dict(source) for source in mix.sources]


def names_in_braces(path: str) -> Mix | None:
    """The files of `folder/{a,b}.json`, as LLaVA-NeXT takes it apart; None for any other path."""
    match = _BRACES.fullmatch(path)
    if match is None:
        return None
    before, names = match.groups()
    return Mix(tuple({"annotations": f"{before}{name}.json"} for name in names.split(",")))


def read_mix(text: str, file: str) -> Mix | None:
    """The data sets that a YAML list of LLaVA-NeXT names; None where it is no such list."""
    try:
        root = parse_value(text, file).root
    except RecipeError:
        return None
    datasets = root.get("datasets") if isinstance(root, dict) else None
    if not isinstance(datasets, list) or not datasets:
        return None
    sources: list[dict[str, Value]] = []
    lost: list[str] = []
    for dataset in datasets:
        if not isinstance(dataset, dict) or not isinstance(dataset.get("json_path"), str):
            return None
        sources.append({_KEYS[key]: value for key, value in dataset.items() if key in _KEYS})
        lost += [key for key in dataset if key not in _KEYS and key not in lost]
    return Mix(tuple(sources), tuple(lost))
