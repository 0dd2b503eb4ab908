from __future__ import annotations

import pytest

from llava_recipes.estimate.cost import GPUS, UnknownGpuError, find_gpu


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("a100-80g", "a100-80g"),
        ("A100-80GB", "a100-80g"),
        ("a100", "a100-80g"),
        ("NVIDIA H100", "h100"),
        ("rtx_4090", "rtx4090"),
        (" L40S ", "l40s"),
    ],
)
def test_a_gpu_is_found_however_it_is_spelt(spelt: str, name: str) -> None:
    assert find_gpu(spelt).name == name


def test_a_near_miss_is_named() -> None:
    with pytest.raises(UnknownGpuError, match=r"unknown GPU 'a10-80g'; did you mean a100-80g\?"):
        find_gpu("a10-80g")


def test_what_is_near_nothing_gets_the_whole_list() -> None:
    with pytest.raises(UnknownGpuError) as caught:
        find_gpu("abacus")
    assert all(name in str(caught.value) for name in GPUS)


def test_every_gpu_is_plausible() -> None:
    for name, gpu in GPUS.items():
        assert find_gpu(name) is gpu
        said = int(gpu.title.split()[-2])
        assert 0.88 * said < gpu.memory_gib < said
        assert gpu.fp32_tflops <= gpu.half_tflops
        assert (
            gpu.tflops("fp32", tf32=False) <= gpu.tflops("fp32", tf32=True) <= gpu.tflops("bf16", tf32=True)
        )
        assert 0.3 <= gpu.efficiency <= 1
