"""Compare llama.cpp's answers from a `gguf-ready` export with those of `llava-recipe generate`.

    python -m benchmarks.engines.ask_llama_cpp RUN --binary BUILD/bin/llama-mtmd-cli --source LLAMA_CPP \
        --python CONVERTERS/bin/python --questions FILE --images DIR

The converters of the checkout make both GGUF files, by the commands in the export's README.md, but in float32
and into a folder that goes away. Then the binary is started for each question, in its chat mode: given a
question on its command line, it may end before it has written all of its answer.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.engines.compare import (
    Answered,
    Engine,
    Question,
    Refused,
    compare,
    existing_file,
    existing_folder,
    make_parser,
)
from benchmarks.engines.dialogue import dialogue
from benchmarks.engines.process import executable, run

PROG = "ask_llama_cpp"
CONVERT_LANGUAGE = Path("convert_hf_to_gguf.py")
CONVERT_VISION = Path("tools/mtmd/legacy-models/convert_image_encoder_to_gguf.py")

ANSWER_BEGINS = "<answer begins>"
"""Written by llama-mtmd-cli before it answers, where MTMD_TEST_RESPONSE_MARKER names it."""
PROMPT = "\n> "
IMAGE_LOADED = " image loaded"


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(PROG, __doc__)
    parser.add_argument("--binary", required=True, metavar="FILE", help="llama-mtmd-cli")
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="checkout of llama.cpp")
    parser.add_argument("--python", required=True, metavar="FILE", help="Python with its converters' needs")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="RUN exported with `--to gguf-ready` (default: RUN/export-gguf-ready)",
    )
    return compare(parser.parse_args(argv), PROG, _open)


def _open(arguments: argparse.Namespace) -> Engine:
    binary, python = executable(arguments.binary, "--binary"), executable(arguments.python, "--python")
    source: Path = arguments.source
    for script in (CONVERT_LANGUAGE, CONVERT_VISION):
        existing_file(source / script, "--source")
    export = arguments.export or arguments.run / "export-gguf-ready"
    hint = f"make it: llava-recipe export {arguments.run} --to gguf-ready"
    for part in ("language_model", "vit"):
        existing_folder(export / part, "--export", hint=hint)

    def ask(questions: Sequence[Question], max_new_tokens: int) -> Answered:
        if any("\n" in question.text for question in questions):
            raise Refused("llama-mtmd-cli takes a question as one line; --questions has some of several")
        with tempfile.TemporaryDirectory() as folder:
            model, vision = convert(export, Path(folder), python=python, source=source)
            answers = tuple(
                answer(binary, model, vision, question, max_new_tokens=max_new_tokens)
                for question in questions
            )
        return Answered(f"llama.cpp {version_of(binary)}", answers)

    return ask


def convert(export: Path, folder: Path, *, python: str, source: Path) -> tuple[Path, Path]:
    """Make the language model's GGUF file and the vision side's. Raises Refused where a converter fails."""
    vision, language = export / "vit", export / "language_model"
    file = existing_file(vision / "preprocessor_config.json", "--export")
    settings = json.loads(file.read_text("utf-8"))
    model = folder / "model-f32.gguf"
    run([python, source / CONVERT_LANGUAGE, language, "--outfile", model, "--outtype", "f32"])
    words: list[str | Path] = [python, source / CONVERT_VISION, "-m", vision, "--output-dir", folder]
    words += ["--llava-projector", vision / "llava.projector", "--clip-model-is-vision", "--use-f32"]
    words += ["--image-mean", *map(str, settings["image_mean"])]
    words += ["--image-std", *map(str, settings["image_std"])]
    run(words)
    return (
        existing_file(model, "converted"),
        existing_file(folder / "mmproj-model-f32.gguf", "converted"),
    )


def answer(binary: str, model: Path, vision: Path, question: Question, *, max_new_tokens: int) -> str:
    """One greedy answer. Raises Refused where the binary fails or writes something else."""
    words: list[str | Path] = [binary, "-m", model, "--mmproj", vision, "--jinja", "--temp", "0"]
    words += ["-lv", "1", "-n", str(max_new_tokens)]
    # Its lines are read as wide characters.
    environment = {"MTMD_TEST_RESPONSE_MARKER": ANSWER_BEGINS, "LC_ALL": "C.UTF-8"}
    with dialogue(words, prompt=PROMPT, env=environment) as chat:
        chat.listen()
        shown = chat.say(f"/image {question.image.resolve()}")
        if IMAGE_LOADED not in shown:
            raise Refused(f"{binary} did not load {question.image}")
        _, found, said = chat.say(question.text).partition(ANSWER_BEGINS)
    if not found:
        raise Refused(f"{binary} wrote no {ANSWER_BEGINS!r} before its answer: another version?")
    return said.strip()


def version_of(binary: str) -> str:
    """What `--version` says first, such as "0.0.0 (build 1, commit 0c1e570)"."""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, errors="replace")
    found = re.search(r"version: *(.+)", done.stdout + done.stderr)
    return found[1] if found else "of an unknown version"


if __name__ == "__main__":
    sys.exit(main())
