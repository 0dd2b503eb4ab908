"""Stands in for lmms-eval's `__main__` where the process around it is tested.

The real one fetches every benchmark from the hub, which tests must not. This one takes the options that ours
passes, no others, opens the model's config as the real one does first, and writes results where and as
lmms-eval 0.7.3 does (lmms_eval/loggers/evaluation_tracker.py). What it cannot show: that the real one likes
the model. That was tried by hand with 0.7.3: a tiny exported run, on a task of two pictures on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
for option in ("model", "model_args", "tasks", "batch_size", "output_path", "device", "limit"):
    parser.add_argument(f"--{option}")
options = parser.parse_args()
assert (options.model, options.batch_size) == ("llava_hf", "1")
given = dict(pair.split("=", 1) for pair in options.model_args.split(","))
# The real one passes an empty device map on, which transformers 5 refuses.
assert given["device_map"]
# Its AutoConfig would ask for consent on standard input, and read it there.
assert given["trust_remote_code"] == "False" and sys.stdin.read() == ""
assert sys.flags.safe_path
assert json.loads((Path(given["pretrained"]) / "config.json").read_text())["model_type"] == "llava"
if os.environ.get("FAKE_LMMS_EVAL") == "fails":
    # The real one catches every error, prints it and ends well.
    print("Error during evaluation")
    raise SystemExit(0)
results = {
    "gqa": {
        "alias": "gqa",
        "exact_match,none": 0.6,
        "exact_match_stderr,none": 0.01,
        "exact_match_stderr_clt,none": 0.01,
    },
    "mme": {
        "alias": "mme",
        "mme_cognition_score,none": 300.0,
        "mme_cognition_score_stderr,none": "N/A",
        "mme_perception_score,none": 1500.5,
        "mme_perception_score_stderr,none": "N/A",
    },
    "own": {"alias": "own", "hits,none": 0.25, "submission,none": None, "samples": 4},
}
folder = Path(options.output_path) / Path(given["pretrained"]).name
folder.mkdir(parents=True)
values = {
    "results": {task: results[task] for task in options.tasks.split(",")},
    "lmms_eval_version": "0.7.3",
    "config": {"limit": options.limit, "device": options.device, "model_args": options.model_args},
}
(folder / "20260101_000000_results.json").write_text(json.dumps(values))
