"""What a launcher's options say: how many processes take part, and settings of training among them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from math import prod

_OF_ACCELERATE = (
    *("config_file", "mixed_precision", "gradient_accumulation_steps", "gradient_clipping", "dynamo_backend"),
    *("use_deepspeed", "deepspeed_config_file", "zero_stage", "offload_optimizer_device"),
    *("offload_param_device", "use_fsdp", "fsdp_sharding_strategy", "fsdp_offload_params"),
)
_SHORT: Mapping[str, str] = {"n": "ntasks", "N": "nodes"}


def count_processes(launcher: Sequence[str], *, visible_devices: str | None) -> int | None:
    """How many processes train, where the launcher says all of it in numbers; None where it leaves it open.

    launcher         the words before the training program, with `?` where a value is not known
    visible_devices  what CUDA_VISIBLE_DEVICES says, where the script sets it
    """
    names = [word.rpartition("/")[2] for word in launcher]
    if _has_unknown_options(launcher):
        return None
    if "accelerate" in names:
        # A number in all, over all machines.
        return _number(_options(launcher, names.index("accelerate")).get("num_processes"))
    if "deepspeed" in names:
        return _of_deepspeed(_options(launcher, names.index("deepspeed")), visible_devices)
    elastic = next(
        (name for name in ("torchrun", "torch.distributed.run", "torch.distributed.launch") if name in names),
        None,
    )
    if elastic is not None:
        options = _options(launcher, names.index(elastic))
        return _product(options.get("nproc_per_node"), options.get("nnodes", "1"))
    if "srun" in names:
        return _of_srun(_options(launcher, names.index("srun")))
    if any(name.startswith("python") for name in names) and visible_devices is not None:
        # With several devices and no launcher, the Trainer splits each batch among them in one process.
        return 1 if len(_listed(visible_devices)) == 1 else None
    return None


def _has_unknown_options(launcher: Sequence[str]) -> bool:
    """Whether a word stands alone whose value is not known: it may be any option."""
    return any(
        word == "?" and not (before.startswith("-") and "=" not in before)
        for before, word in itertools.pairwise(["", *launcher])
    )


def training_options(launcher: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    """Options of `accelerate launch` that reach the training itself."""
    names = [word.rpartition("/")[2] for word in launcher]
    if "accelerate" not in names:
        return ()
    options = _options(launcher, names.index("accelerate"))
    why = "a setting of accelerate's own, which can change the run"
    return tuple((f"accelerate --{name}", options[name], why) for name in _OF_ACCELERATE if name in options)


def _of_deepspeed(options: Mapping[str, str], visible_devices: str | None) -> int | None:
    if "include" in options:
        hosts = [host.partition(":") for host in options["include"].split("@")]
        counts = [len(_listed(slots)) if colon else 0 for _, colon, slots in hosts]
        return sum(counts) if all(counts) else None
    if "exclude" in options:
        return None
    if "num_gpus" in options:
        # How many machines there are, a file of hosts says.
        is_open = "hostfile" in options and "num_nodes" not in options
        return None if is_open else _product(options["num_gpus"], options.get("num_nodes", "1"))
    if {"hostfile", "num_nodes"} & set(options) or visible_devices is None:
        return None
    return len(_listed(visible_devices)) or None


def _of_srun(options: Mapping[str, str]) -> int | None:
    if "ntasks" in options:
        return _number(options["ntasks"])
    return _product(options.get("ntasks_per_node"), options.get("nodes"))


def _options(launcher: Sequence[str], start: int) -> dict[str, str]:
    options: dict[str, str] = {}
    words = [*launcher[start + 1 :], ""]
    for word, following in itertools.pairwise(words):
        if word.startswith("--"):
            name, has_value, value = word[2:].replace("-", "_").partition("=")
            if has_value:
                # Of the value, which `-` may stand in, nothing is changed.
                value = word.partition("=")[2]
            options[name] = value if has_value else "" if following.startswith("--") else following
        elif word[:1] == "-" and word[1:2] in _SHORT:
            options[_SHORT[word[1]]] = word[2:].lstrip("=") or following
    return options


def _listed(text: str) -> list[str]:
    """The devices of a list such as `0,1,2`; none where it is no such list."""
    parts = [part.strip() for part in text.split(",")]
    return parts if all(part.isdecimal() for part in parts) else []


def _number(text: str | None) -> int | None:
    return int(text) or None if text is not None and text.isdecimal() and len(text) < 7 else None


def _product(*texts: str | None) -> int | None:
    numbers = [_number(text) for text in texts]
    return prod(number for number in numbers if number is not None) if None not in numbers else None
