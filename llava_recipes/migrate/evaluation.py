"""Flags that measure the loss on data of its own, as `data.validation` and `train.eval_…`."""

from __future__ import annotations

from llava_recipes.migrate.draft import STAGE, Draft
from llava_recipes.migrate.flags import Flags
from llava_recipes.recipe.scalars import Value, say_number

_DATA = ("eval_data_path", "validation_data_path", "val_data_path")
_IMAGES = ("eval_image_folder", "validation_image_folder", "val_image_folder")
_STRATEGIES = ("evaluation_strategy", "eval_strategy")
EVALUATION_FLAGS = (*_DATA, *_IMAGES, *_STRATEGIES, "eval_steps", "do_eval", "evaluate_during_training")

_NO_DATA = "the script names no validation data; recipes have `validation:` under `data:`"


def translate_evaluation(flags: Flags, draft: Draft) -> None:
    """Fill in `data.validation`, and when its loss is measured; the training data is there already."""
    has_data = _translate_data(flags, draft)
    strategy = ""
    for name in _STRATEGIES:
        given = flags.text(name)
        if given is None:
            continue
        strategy, mark = given, flags[name].mark
        if given in ("steps", "epoch") and not has_data:
            draft.lost(f"--{name}", given, _NO_DATA, mark)
        elif given in ("no", "steps", "epoch"):
            draft.mapped(f"--{name}", given, (STAGE, "train", "eval_strategy"), given, mark=mark)
        else:
            draft.lost(f"--{name}", given, "recipes know no, steps and epoch", mark)
    _translate_steps(flags, draft, counts=strategy == "steps" and has_data)
    flag = flags.take("do_eval")
    if flag is not None:
        asks = flag.text.lower() not in ("false", "no", "0", "f", "n")
        if asks and not has_data:
            draft.lost("--do_eval", flag.text or "True", _NO_DATA, flag.mark)
        else:
            why = (
                "the loss on `data.validation` is always measured at the end" if asks else "nothing is asked"
            )
            draft.needless("--do_eval", flag.text or "True", why, flag.mark)


def _translate_data(flags: Flags, draft: Draft) -> bool:
    name = next((name for name in _DATA if name in flags), None)
    folder = next((name for name in _IMAGES if name in flags), None)
    images = flags.text(folder) if folder is not None else None
    if name is None:
        if folder is not None:
            draft.needless(
                f"--{folder}", flags[folder].text, "no validation data is named", flags[folder].mark
            )
        return False
    files = flags.texts(name)
    path = (STAGE, "data", "validation", "sources")
    pictures = (
        images if images is not None else flags["image_folder"].text if "image_folder" in flags else None
    )
    sources: list[Value] = [
        {"annotations": file} if pictures is None else {"annotations": file, "images": pictures}
        for file in files
    ]
    if not sources:
        return False
    remark = "" if images is not None or pictures is None else "its images are those of `--image_folder`"
    draft.mapped(f"--{name}", flags[name].text, path, sources, remark=remark, mark=flags[name].mark)
    if folder is not None and images is not None:
        draft.tell_mapped(f"--{folder}", images, path, mark=flags[folder].mark)
    return True


def _translate_steps(flags: Flags, draft: Draft, *, counts: bool) -> None:
    path = (STAGE, "train", "eval_steps")
    if not counts:
        flag = flags.take("eval_steps")
        if flag is not None:
            draft.needless("--eval_steps", flag.text, "nothing is measured in steps", flag.mark)
        return
    number = flags.number("eval_steps")
    if number is not None and (number < 1 or not number.is_integer()):
        why = "a share of the run: write the number of steps as `eval_steps`"
        draft.lost("--eval_steps", flags["eval_steps"].text, why, flags["eval_steps"].mark)
    elif number is not None:
        draft.mapped("--eval_steps", say_number(number), path, int(number), mark=flags["eval_steps"].mark)
    elif "eval_steps" not in flags:
        logging = draft.read(STAGE, "train", "logging_steps")
        draft.default(
            "--eval_steps", path, logging if isinstance(logging, int) else 500, remark="`logging_steps`"
        )
