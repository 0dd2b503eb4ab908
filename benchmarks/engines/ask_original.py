"""Compare the original LLaVA's answers with those of `llava-recipe generate`.

    python -m benchmarks.engines.ask_original RUN --python ORIGINAL/bin/python --checkout LLaVA \
        --questions FILE --images DIR

Its code, unchanged, loads RUN/export-llava as its own `model_vqa.py` does. With `--base` it is given RUN
itself, adapters or a projector, and lays them over that model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engines.compare import (
    Answered,
    Engine,
    Question,
    compare,
    existing_file,
    existing_folder,
    make_parser,
)
from benchmarks.engines.process import ask_inside, executable

PROG = "ask_original"
INSIDE = Path(__file__).with_name("inside_original.py")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(PROG, __doc__)
    parser.add_argument("--python", required=True, metavar="FILE", help="Python with what the original needs")
    parser.add_argument("--checkout", type=Path, required=True, metavar="DIR", help="haotian-liu/LLaVA")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="RUN exported with `--to llava` (default: RUN/export-llava, with --base RUN itself)",
    )
    parser.add_argument(
        "--conv-mode", default="vicuna_v1", metavar="NAME", help="conversation template (default %(default)s)"
    )
    return compare(parser.parse_args(argv), PROG, _open)


def _open(arguments: argparse.Namespace) -> Engine:
    python = executable(arguments.python, "--python")
    existing_file(arguments.checkout / "llava" / "model" / "builder.py", "--checkout")
    given = arguments.run if arguments.base is not None else arguments.run / "export-llava"
    export = existing_folder(
        arguments.export or given,
        "--export",
        hint=f"make it: llava-recipe export {arguments.run} --to llava",
    )
    has_adapters = (export / "adapter_config.json").is_file()

    def ask(questions: Sequence[Question], max_new_tokens: int) -> Answered:
        request = {
            "model": str(export.resolve()),
            "base": arguments.base,
            # The original reads from this name which way to load.
            "name": "llava-lora" if has_adapters else "llava",
            "conv_mode": arguments.conv_mode,
            "questions": [{"image": str(each.image.resolve()), "text": each.text} for each in questions],
            "max_new_tokens": max_new_tokens,
        }
        return ask_inside(python, INSIDE, request, env={"PYTHONPATH": str(arguments.checkout.resolve())})

    return ask


if __name__ == "__main__":
    sys.exit(main())
