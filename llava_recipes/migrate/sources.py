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
    """`--data_path` and `--image_folder`, which LLaVA and TinyLLaVA call by the same names.

    LLaVA takes one of each; forks take several, as words of their own or with commas between them.
    """
    files, folders = _values(flags, "data_path"), _values(flags, "image_folder")
    if len(folders) > 1 and len(folders) != len(files):
        # A folder may have a comma in its name.
        folder = flags.text("image_folder")
        folders = () if folder is None else (folder,)
    path = (STAGE, "data", "sources")
    if not files and not folders:
        return
    sources: list[dict[str, Value]] = []
    for number, file in enumerate(files or (None,)):
        images = folders[number if len(folders) > 1 else 0] if folders else None
        sources += [_with_images(source, images) for source in _sources_of(file, flags, draft, read_text)]
    for number, source in enumerate(sources):
        count = known_num_samples(str(source.get("annotations", "")))
        if count is not None:
            source["num_samples"] = count
            comment = "known by the file's name; checked when it is read"
            draft.comments[(*path, number, "num_samples")] = comment
    draft.put(path, list[Value](sources))
    for name, values, key in (("data_path", files, "annotations"), ("image_folder", folders, "images")):
        if values:
            where = path if len(sources) > 1 else (*path, 0, key)
            remark = f"{len(values)} files, a source each" if key == "annotations" and len(values) > 1 else ""
            draft.tell_mapped(f"--{name}", flags[name].text, where, remark=remark, mark=flags[name].mark)


def _values(flags: Flags, name: str) -> tuple[str, ...]:
    """The paths of a flag; a value in several words that are no paths of data is a problem."""
    flag = flags.take(name)
    if flag is None:
        return ()
    is_data = name == "data_path"
    listed = [part for value in flag.values for part in _comma_list(value, is_data=is_data)]
    if len(listed) == 1 or (len(listed) > 1 and (not is_data or all(map(_is_data_file, listed)))):
        return tuple(listed)
    text = flags.text(name)
    return () if text is None else (text,)


def _comma_list(text: str, *, is_data: bool) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    is_list = len(parts) > 1 and "{" not in text and (not is_data or all(map(_is_data_file, parts)))
    return parts if is_list else [text]


def _is_data_file(text: str) -> bool:
    return text.lower().endswith((".json", ".jsonl", ".yaml", ".yml", ".parquet"))


def _with_images(source: dict[str, Value], images: str | None) -> dict[str, Value]:
    return source if images is None else {**source, "images": images}


def _sources_of(
    annotations: str | None, flags: Flags, draft: Draft, read_text: ReadText
) -> list[dict[str, Value]]:
    """An entry for each file that one value of `--data_path` stands for."""
    if annotations is None:
        return [{}]
    mix = names_in_braces(annotations)
    is_list = annotations.endswith((".yaml", ".yml"))
    if is_list:
        found = read_text(annotations)
        mix = None if found is None else read_mix(found[1], annotations)
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
