"""The number of processes that a launcher determines."""

from __future__ import annotations

import pytest

from llava_recipes.migrate.commands import count_processes


@pytest.mark.parametrize(
    ("launcher", "devices", "count"),
    [
        ("deepspeed", None, None),
        ("deepspeed", "0,1,2", 3),
        ("deepspeed", "?", None),
        ("deepspeed --include localhost:0,1", "0,1,2", 2),
        ("deepspeed --include=a:0,1@b:0,1,2", None, 5),
        ("deepspeed --include localhost", None, None),
        ("deepspeed --include localhost:?", None, None),
        ("deepspeed --exclude localhost:0", "0,1", None),
        ("deepspeed --num_gpus 4 --num_nodes=2", None, 8),
        ("deepspeed --num_gpus 8 --hostfile hosts", None, None),
        ("deepspeed --hostfile hosts", "0,1", None),
        ("torchrun --nproc-per-node 8", None, 8),
        ("torchrun --nproc_per_node=8 --nnodes ?", None, None),
        ("torchrun --nproc_per_node=8 --nnodes=?", None, None),
        ("torchrun --nproc_per_node=8 --nnodes=1:4", None, None),
        ("torchrun --nproc_per_node=8 --master_port=?", None, 8),
        ("torchrun --nproc_per_node gpu", None, None),
        ("torchrun ? --nproc_per_node=8", None, None),
        ("torchrun", None, None),
        ("/opt/bin/torchrun --nproc_per_node=2", None, 2),
        ("python -m torch.distributed.launch --nproc_per_node=4", None, 4),
        ("accelerate launch --num_processes 16 --num_machines 2", None, 16),
        ("accelerate launch", "0,1", None),
        ("srun --ntasks 16 python", None, 16),
        ("srun -N 2 --ntasks-per-node=8 python", None, 16),
        ("srun -n8 python", None, 8),
        ("srun --nodes 2 torchrun --nproc_per_node 4 --nnodes 2", None, 8),
        ("python", "3", 1),
        ("python", "0,1", None),
        ("python", None, None),
    ],
)
def test_processes_are_counted_where_the_launcher_says_all_of_it(
    launcher: str, devices: str | None, count: int | None
) -> None:
    assert count_processes(launcher.split(), visible_devices=devices) == count
