"""What holds for every test: offline, on the CPU, with one thread, in this process and in those it starts."""

from __future__ import annotations

import os
import sys

from hypothesis import settings

# The same examples every time: a red run speaks of the change. `--hypothesis-profile=default` draws new ones.
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    CUDA_VISIBLE_DEVICES="",
    DS_ACCELERATOR="cpu",
    # rich wraps at the terminal's width; the texts that tests compare must not depend on it.
    COLUMNS="110",
)
for name in ("WANDB_API_KEY", "FORCE_COLOR", "CLICOLOR_FORCE", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(name, None)

LOOPBACK = ("127.", "::1", "localhost")


def _refuse_the_network(event: str, arguments: tuple[object, ...]) -> None:
    """Fail a test that reaches for another machine; Unix sockets and loopback are fine."""
    if event != "socket.connect":
        return
    address = arguments[1]
    if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
        raise RuntimeError(f"a test reached for the network: {address[0]}")


sys.addaudithook(_refuse_the_network)
