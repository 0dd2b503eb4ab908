"""`llava-recipe eval RUN`: loss and exact matches on a file, or benchmarks by lmms-eval."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llava_recipes.cli.options import (
    add_answer_length,
    add_opening,
    add_run,
    length_of,
    positive,
    progress,
    quiet_libraries,
)
from llava_recipes.exit_codes import USAGE_ERROR
from llava_recipes.screen import console, escape_json, say

if TYPE_CHECKING:
    from pydantic import JsonValue

    from llava_recipes.data.dataset import StageDataset
    from llava_recipes.use.opened import Opened

EPILOG = """\
--data measures on FILE, in the format of training data, offline:
  loss          loss of the reference answers, with perplexity and token accuracy
  exact_match   share of answers equal to the reference, each asked after the reference conversation before \
it; and the same without case, punctuation and extra space

--tasks runs lmms-eval (pip install '.[eval]' in the checkout) on the exported model and prints LLaVA-1.5's \
published scores next to its results. Benchmarks come from the hub; MMBench, LLaVA-Bench and MM-Vet are \
judged by a GPT and need its key. Tasks with published scores: vqav2_val, gqa, vizwiz_vqa_val, \
scienceqa_img, textvqa_val, pope, mme, mmbench_en_dev, mmbench_cn_dev, seedbench, llava_in_the_wild, mmvet."""

METRICS = ("loss", "exact_match")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add_run(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", metavar="FILE", help="annotation file to measure on")
    what.add_argument("--tasks", metavar="NAMES", help="benchmarks of lmms-eval, separated by commas")
    parser.add_argument(
        "--include-path", metavar="DIR", help="with --tasks: folder of your own tasks for lmms-eval"
    )
    parser.add_argument(
        "--images", metavar="DIR", help="with --data: folder of the images (default: that of FILE)"
    )
    parser.add_argument(
        "--metrics",
        type=_metrics,
        default=METRICS,
        metavar="NAMES",
        help=f"with --data: {','.join(METRICS)} (default: both)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="with --data: samples at a time (default: 8)",
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="use only the first N samples (of each task)"
    )
    add_answer_length(parser, usual=128, goes_with="with --data: ")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="JSON file to write (default: RUN/eval.json or RUN/benchmarks.json)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing OUT")
    add_opening(parser)


def run(arguments: argparse.Namespace) -> int:
    from llava_recipes.use.batches import check_output

    if arguments.tasks is not None and arguments.batch_size not in (None, 1):
        say("llava-recipe eval: --tasks takes one question at a time: remove --batch-size", to_stderr=True)
        return USAGE_ERROR
    name = "benchmarks.json" if arguments.data is None else "eval.json"
    output = arguments.output if arguments.output is not None else Path(arguments.run) / name
    check_output(output, overwrite=arguments.overwrite)
    quiet_libraries()
    if arguments.data is None:
        from llava_recipes.cli.eval_tasks import run_tasks

        return run_tasks(arguments, output)
    return _measure(arguments, output)


def _measure(arguments: argparse.Namespace, output: Path) -> int:
    from llava_recipes.files import write_text
    from llava_recipes.use.evaluate import open_data
    from llava_recipes.use.opened import open_to_ask

    opened = open_to_ask(
        arguments.run, precision=arguments.dtype, device=arguments.device, base=arguments.base
    )
    images = arguments.images if arguments.images is not None else str(Path(arguments.data).parent)
    dataset = open_data(opened, arguments.data, images=images)
    num_samples = min(len(dataset), arguments.limit or len(dataset))
    measures: dict[str, JsonValue] = {}
    if "loss" in arguments.metrics:
        measures |= _token_values(opened, dataset, num_samples, arguments.batch_size or 8)
    if "exact_match" in arguments.metrics:
        measures |= _match_values(opened, dataset, num_samples, arguments)
    results: dict[str, JsonValue] = {
        "run": arguments.run,
        "data": arguments.data,
        "wording": opened.run.data.wording,
        "num_samples": num_samples,
        "max_new_tokens": length_of(arguments)[0] if "exact_match" in arguments.metrics else None,
        "measures": measures,
    }
    write_text(output, escape_json(json.dumps(results, indent=2, ensure_ascii=False)) + "\n")
    _print(measures, f"{num_samples:,} samples of {arguments.data}")
    say(f"wrote {output}")
    return 0


def _token_values(
    opened: Opened, dataset: StageDataset, num_samples: int, batch_size: int
) -> dict[str, JsonValue]:
    from llava_recipes.use.evaluate import measure_tokens

    with progress("loss", total=num_samples) as advance:
        tokens = measure_tokens(
            opened, dataset, num_samples=num_samples, batch_size=batch_size, advance=advance
        )
    return {
        "loss": tokens.loss,
        "perplexity": tokens.perplexity,
        "token_accuracy": tokens.token_accuracy,
        "num_tokens": tokens.num_tokens,
    }


def _match_values(
    opened: Opened, dataset: StageDataset, num_samples: int, arguments: argparse.Namespace
) -> dict[str, JsonValue]:
    from llava_recipes.model.generate import Decoding
    from llava_recipes.use.evaluate import measure_matches, read_references

    max_new_tokens, must_fit = length_of(arguments)
    references = read_references(dataset.records, num_samples=num_samples)
    with progress("answers", total=len(references)) as advance:
        matches = measure_matches(
            opened.answerer,
            references,
            decoding=Decoding(max_new_tokens, must_fit=must_fit),
            batch_size=arguments.batch_size or 8,
            advance=advance,
        )
    return {
        "exact_match": matches.exact_match,
        "exact_match_normalised": matches.exact_match_normalized,
        "num_answers": matches.num_answers,
    }


_WORDS: dict[str, tuple[str, Callable[[float], str]]] = {
    "loss": ("loss per token, nats", "{:.4f}".format),
    "perplexity": ("perplexity", "{:.3f}".format),
    "token_accuracy": ("token accuracy", "{:.1%}".format),
    "num_tokens": ("tokens learned", "{:,}".format),
    "exact_match": ("exact match", "{:.1%}".format),
    "exact_match_normalised": ("exact match, normalized", "{:.1%}".format),
    "num_answers": ("answers", "{:,}".format),
}


def _print(measures: dict[str, JsonValue], title: str) -> None:
    from rich.table import Table

    table = Table(show_header=False)
    table.add_column("measure")
    table.add_column("value", justify="right")
    for key, value in measures.items():
        words, spell = _WORDS[key]
        assert isinstance(value, (int, float))
        table.add_row(words, spell(value))
    say(title)
    console().print(table)


def _metrics(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRICS)}")
    return names
