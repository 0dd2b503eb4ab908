"""Compare vLLM's answers from an `hf` export with those of `llava-recipe generate`.

    python -m benchmarks.engines.ask_vllm RUN --python VLLM/bin/python --questions FILE --images DIR

vLLM runs in its own environment, on the CPU, and is asked as a server's client asks it: by chat messages.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engines.compare import Answered, Engine, Question, compare, existing_folder, make_parser
from benchmarks.engines.process import ask_inside, executable

PROG = "ask_vllm"
INSIDE = Path(__file__).with_name("inside_vllm.py")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # The engine in the script's own process: its errors are the script's, and it ends with it.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(PROG, __doc__)
    parser.add_argument("--python", required=True, metavar="FILE", help="Python with vLLM")
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="RUN exported with `--to hf` (default: RUN/export-hf)"
    )
    return compare(parser.parse_args(argv), PROG, _open)


def _open(arguments: argparse.Namespace) -> Engine:
    python = executable(arguments.python, "--python")
    export = arguments.export or arguments.run / "export-hf"
    existing_folder(export, "--export", hint=f"make it: llava-recipe export {arguments.run} --to hf")

    def ask(questions: Sequence[Question], max_new_tokens: int) -> Answered:
        request = {
            "model": str(export.resolve()),
            "questions": [{"image": str(each.image.resolve()), "text": each.text} for each in questions],
            "max_new_tokens": max_new_tokens,
        }
        return ask_inside(python, INSIDE, request, env=ENVIRONMENT)

    return ask


if __name__ == "__main__":
    sys.exit(main())
