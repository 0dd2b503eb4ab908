"""Which commands read which file of the ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Words = tuple[str, ...]

ASK = ("--max-new-tokens", "2", "--device", "cpu")


def _chat(run: str, *more: str) -> Words:
    return ("chat", run, "Hi", "--image", "data/images/rgb_0.jpg", *more, *ASK)


def _measure(run: str, data: str = "data/few.json", *more: str) -> Words:
    return (
        "eval",
        run,
        "--data",
        data,
        "--images",
        "data/images",
        "-o",
        "out/e.json",
        "--limit",
        "2",
        *more,
        *ASK,
    )


def _generate(run: str, questions: str, *more: str) -> Words:
    return (
        "generate",
        run,
        "--input",
        questions,
        "--images",
        "data/images",
        "-o",
        "out/a.jsonl",
        *more,
        *ASK,
    )


def _export(run: str, to: str) -> Words:
    return ("export", run, "--to", to, "-o", "out/x")


GENERATE = tuple(
    "partial/a.jsonl" if word == "out/a.jsonl" else word
    for word in _generate("runs/full", "data/questions.json", "--batch-size", "1")
)
DEEP: Words = ("validate", "--deep")
_MODEL: Sequence[Words] = (
    ("plan", "json.yaml"),
    (*DEEP, "json.yaml"),
    ("preview", "json.yaml", "--samples", "0:1"),
    ("run", "json.yaml", "--dry-run"),
    _chat("runs/full"),
)
_TOKENIZER: Sequence[Words] = (
    (*DEEP, "json.yaml"),
    ("preview", "json.yaml", "--samples", "0:1"),
    ("preview", "chat.yaml", "--samples", "0:1"),
    ("plan", "json.yaml"),
)
_RECIPE = (("validate",), ("plan",), ("show",), ("validate", "--deep"))


def _over(file: str) -> Sequence[Words]:
    return (("validate", file), ("plan", file), ("show", file), (*DEEP, file), ("diff", file, file))


READERS: Mapping[str, Sequence[Words]] = {
    "json.yaml": (*_over("json.yaml"), *_over("child.yaml")),
    "child.yaml": _over("child.yaml"),
    "ds.json": _over("ds.yaml"),
    "data/few.json": (
        ("validate", "json.yaml"),
        (*DEEP, "json.yaml"),
        (*DEEP, "--all", "json.yaml"),
        ("plan", "json.yaml"),
        ("preview", "json.yaml", "--samples", "0:2"),
        _measure("runs/full"),
        (
            "new",
            "pretrain",
            "-o",
            "out/new.yaml",
            "--llm",
            "llm",
            "--tower",
            "clip",
            "--data",
            "data/few.json",
            "--images",
            "data/images",
            "--yes",
        ),
    ),
    "data/few.jsonl": (
        ("validate", "jsonl.yaml"),
        (*DEEP, "jsonl.yaml"),
        (*DEEP, "--all", "jsonl.yaml"),
        ("plan", "jsonl.yaml"),
        ("preview", "jsonl.yaml", "--samples", "0:2"),
    ),
    "data/few.parquet": (
        ("validate", "parquet.yaml"),
        (*DEEP, "parquet.yaml"),
        (*DEEP, "--all", "parquet.yaml"),
        ("plan", "parquet.yaml"),
        ("preview", "parquet.yaml", "--samples", "0:2"),
    ),
    "data/paths.parquet": ((*DEEP, "--all", "paths.yaml"), ("preview", "paths.yaml", "--samples", "0:2")),
    "data/images/rgb_0.jpg": (
        (*DEEP, "--all", "json.yaml"),
        ("preview", "json.yaml", "--samples", "0:4"),
        _chat("runs/full"),
        _measure("runs/full"),
    ),
    "data/questions.json": (_generate("runs/full", "data/questions.json"),),
    "data/questions.jsonl": (_generate("runs/full", "data/questions.jsonl"),),
    "partial/a.jsonl.unfinished": ((*GENERATE, "--resume"),),
    "llm/config.json": _MODEL,
    "llm/generation_config.json": (_chat("runs/full"), (*DEEP, "json.yaml"), _export("runs/full", "hf")),
    "llm/tokenizer.json": _TOKENIZER,
    "llm/tokenizer_config.json": _TOKENIZER,
    "llm/special_tokens_map.json": _TOKENIZER,
    "llm/tokenizer.model": (*_TOKENIZER, _export("runs/full", "llava")),
    "llm/chat_template.jinja": _TOKENIZER,
    "llm/model.safetensors": (
        (*DEEP, "json.yaml"),
        ("run", "json.yaml", "--dry-run"),
        _chat("runs/projector"),
    ),
    "binary/pytorch_model.bin": ((*DEEP, "jsonl.yaml"), _chat("alone", "--base", "binary")),
    "binary/tokenizer.model": ((*DEEP, "jsonl.yaml"), ("preview", "jsonl.yaml", "--samples", "0:1")),
    "binary/added_tokens.json": ((*DEEP, "jsonl.yaml"), ("preview", "jsonl.yaml", "--samples", "0:1")),
    "binary/tokenizer_config.json": ((*DEEP, "jsonl.yaml"), ("preview", "jsonl.yaml", "--samples", "0:1")),
    "binary/special_tokens_map.json": ((*DEEP, "jsonl.yaml"), ("preview", "jsonl.yaml", "--samples", "0:1")),
    "sharded/model.safetensors.index.json": ((*DEEP, "parquet.yaml"), _chat("alone", "--base", "sharded")),
    "sharded/model-00001-of-00002.safetensors": (
        (*DEEP, "parquet.yaml"),
        _chat("alone", "--base", "sharded"),
    ),
    "bpe/vocab.json": ((*DEEP, "bpe.yaml"), ("preview", "bpe.yaml", "--samples", "0:1")),
    "bpe/merges.txt": ((*DEEP, "bpe.yaml"), ("preview", "bpe.yaml", "--samples", "0:1")),
    "bpe/tokenizer_config.json": ((*DEEP, "bpe.yaml"), ("preview", "bpe.yaml", "--samples", "0:1")),
    "clip/config.json": _MODEL,
    "clip/preprocessor_config.json": (
        (*DEEP, "json.yaml"),
        ("preview", "json.yaml", "--samples", "0:1"),
        _chat("runs/full"),
        _measure("runs/full"),
        _export("runs/full", "hf"),
        ("preview", "anyres.yaml", "--samples", "0:1"),
        (*DEEP, "anyres.yaml"),
    ),
    "clip/model.safetensors": (_chat("runs/projector"), (*DEEP, "json.yaml")),
    "runs/projector/plan.json": (
        _chat("runs/projector"),
        ("validate", "pipeline.yaml"),
        ("plan", "pipeline.yaml"),
        ("run", "pipeline.yaml"),
        ("run", "pipeline.yaml", "--resume"),
        ("run", "pipeline.yaml", "--dry-run"),
        (*DEEP, "over.yaml"),
        ("plan", "over.yaml"),
        ("merge", "runs/lora", "-o", "out/x"),
        _export("runs/full", "hf"),
    ),
    # Only a dry run: without its DONE a stage is trained again.
    "runs/projector/DONE": (
        _chat("runs/projector"),
        ("run", "pipeline.yaml", "--dry-run"),
        _chat("runs/full"),
        (*DEEP, "pipeline.yaml"),
        (*DEEP, "over.yaml"),
    ),
    "runs/projector/mm_projector.bin": ((*DEEP, "projector.yaml"), ("run", "projector.yaml", "--dry-run")),
    "runs/projector/mm_projector.safetensors": (
        _chat("runs/projector"),
        (*DEEP, "over.yaml"),
        _chat("runs/lora"),
    ),
    "runs/projector/config.json": (_chat("runs/projector"), (*DEEP, "over.yaml")),
    "runs/full/plan.json": (
        _chat("runs/full"),
        _export("runs/full", "hf"),
        _export("runs/full", "llava"),
        ("plan", "starts.yaml"),
        (*DEEP, "starts.yaml"),
        ("run", "pipeline.yaml"),
    ),
    "runs/full/DONE": (
        _chat("runs/full"),
        ("run", "pipeline.yaml", "--dry-run"),
        (*DEEP, "starts.yaml"),
        _export("runs/full", "hf"),
    ),
    "runs/full/config.json": (_chat("runs/full"), _export("runs/full", "hf"), (*DEEP, "starts.yaml")),
    "runs/full/environment.json": (_export("runs/full", "hf"), _export("runs/full", "llava")),
    "runs/full/metrics.jsonl": (
        _export("runs/full", "hf"),
        _export("runs/full", "llava"),
        ("run", "pipeline.yaml"),
    ),
    "runs/full/recipe.resolved.yaml": (_export("runs/full", "hf"), ("run", "pipeline.yaml")),
    "runs/full/trained.safetensors": (_chat("runs/full"), (*DEEP, "starts.yaml"), _export("runs/full", "hf")),
    "runs/full/trainer_state.json": (
        _chat("runs/full"),
        _export("runs/full", "hf"),
        ("run", "pipeline.yaml"),
    ),
    "runs/lora/adapter_config.json": (
        _chat("runs/lora"),
        ("merge", "runs/lora", "-o", "out/x"),
        (*DEEP, "adapters.yaml"),
    ),
    "runs/lora/trained.safetensors": (("merge", "runs/lora", "-o", "out/x"), (*DEEP, "adapters.yaml")),
    "started/plan.json": (
        ("run", "started.yaml", "--dry-run"),
        ("run", "started.yaml", "--resume", "--dry-run"),
        ("validate", "started.yaml"),
        (*DEEP, "started.yaml"),
    ),
    **{
        f"started/checkpoint-2/{name}": (("run", "started.yaml", "--resume", "--dry-run"),)
        for name in (
            *("checkpoint.json", "trainer_state.json", "optimizer.pt", "progress.json", "random.json"),
            *("trained.safetensors", "optimizer-00001-of-00001.safetensors"),
        )
    },
    "original/config.json": (
        _chat("original", "--base", "llm"),
        ("import", "original", "-o", "out/x", "--base", "llm"),
    ),
    "original/adapter_config.json": (_chat("original", "--base", "llm"),),
    "original/adapter_model.safetensors": (_chat("original", "--base", "llm"),),
    "original/non_lora_trainables.bin": (_chat("original", "--base", "llm"),),
    "alone/config.json": (_chat("alone", "--base", "llm"),),
    "alone/mm_projector.bin": (
        _chat("alone", "--base", "llm"),
        ("import", "alone", "-o", "out/x", "--base", "llm"),
    ),
    **{
        f"hf/{name}": (
            _chat("hf"),
            ("import", "hf", "-o", "out/x"),
            (*DEEP, "fromhf.yaml"),
            ("plan", "fromhf.yaml"),
        )
        for name in (
            "config.json",
            "generation_config.json",
            "chat_template.jinja",
            "llava_recipe.json",
            "model.safetensors",
            "preprocessor_config.json",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        )
    },
    "hf/README.md": (_chat("hf"), ("import", "hf", "-o", "out/x")),
    **{
        f"llava/{name}": (_chat("llava"), _export("llava", "hf"), (*DEEP, "fromllava.yaml"))
        for name in (
            "config.json",
            "llava_recipe.json",
            "model.safetensors",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
        )
    },
    "next/config.json": (_chat("next"), ("import", "next", "-o", "out/x")),
    "next/preprocessor_config.json": (_chat("next"), ("import", "next", "-o", "out/x")),
    "next/llava_recipe.json": (_chat("next"),),
    "inputs/configs/axolotl_pretrain.yaml": (("migrate", "inputs/configs/axolotl_pretrain.yaml"),),
    "inputs/configs/llama_factory.yaml": (("migrate", "inputs/configs/llama_factory.yaml"),),
    "inputs/configs/xtuner_pretrain.py": (("migrate", "inputs/configs/xtuner_pretrain.py"),),
    "inputs/finetune.sh": (("migrate", "inputs/finetune.sh"),),
    "inputs/mixed.sh": (("migrate", "inputs/mixed.sh"),),
    "inputs/zero2.json": (("migrate", "inputs/mixed.sh"),),
    "inputs/mix.yaml": (("migrate", "inputs/mixed.sh"),),
}
