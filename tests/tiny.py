"""Tiny recipes over the golden fixtures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

GOLDEN = Path(__file__).parent / "golden"
FIXTURES = GOLDEN / "fixtures"


def stage1_values(output_dir: Path, *, golden_run: str = "base", **train: Any) -> dict[str, Any]:
    """The golden Stage-1 run as recipe values; keyword arguments go into `train`."""
    return {
        "version": 1,
        "name": "tiny-pretrain",
        "model": {
            "language_model": str(FIXTURES / "tiny_vicuna"),
            "vision_tower": {"source": str(FIXTURES / "tiny_clip"), "select_layer": -2},
            "projector": {
                "type": "linear" if golden_run == "linear" else "mlp2x_gelu",
                "init_from": str(GOLDEN / "06_stage1" / golden_run / "init.safetensors"),
            },
        },
        "stages": [
            {
                "name": "pretrain",
                "freeze": "all",
                "trainable": ["projector"],
                "data": {
                    "template": "plain",
                    "sources": [
                        {"annotations": str(FIXTURES / "stage1.json"), "images": str(FIXTURES / "images")}
                    ],
                    "image_aspect_ratio": "pad" if golden_run == "pad" else "square",
                    "max_length": 2048,
                },
                "train": {
                    "num_train_epochs": 3,
                    "per_device_train_batch_size": 4,
                    "learning_rate": 1e-3,
                    "weight_decay": 0.0,
                    "warmup_ratio": 0.03,
                    "lr_scheduler_type": "cosine",
                    "gradient_checkpointing": golden_run != "gc_off",
                    "save_strategy": "no",
                    **train,
                },
                "output_dir": str(output_dir),
            }
        ],
    }


def yaml_text(values: dict[str, Any]) -> str:
    """Recipe values as YAML."""
    text: str = yaml.safe_dump(values, sort_keys=False)
    return text


def write_recipe(values: dict[str, Any], file: Path) -> Path:
    """Write recipe values as YAML."""
    file.write_text(yaml_text(values))
    return file


def read_metrics(output_dir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
