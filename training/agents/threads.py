"""A hint about torch's threads, for scripts: in workers of aitia each process has one."""

from __future__ import annotations

import functools
import logging

import torch
from torch import nn

_SMALL = 2**18  # numbers of a layer, 512 x 512: below, handing out its work takes longer than doing it

log = logging.getLogger("aitia")


def hint_at_threads(policy: nn.Module | None) -> None:
    """Say, once in a process, that one thread is probably faster; the setting stays the script's own.

    Args:
        policy: what is trained; None: nothing is, as where a dataset is imported. Nothing is said of networks on
            another device, with convolutions or with large layers.
    """
    threads = torch.get_num_threads()
    parameters = list(policy.parameters()) if policy is not None else []
    small = all(each.ndim <= 2 and each.numel() < _SMALL and each.device.type == "cpu" for each in parameters)
    if threads > 1 and parameters and small:
        _say(threads)


@functools.cache
def _say(threads: int) -> None:
    log.warning(
        "torch computes with %d threads; a policy this small usually trains faster with one: torch.set_num_threads(1) "
        "before `learn`, or OMP_NUM_THREADS=1 in the environment (results may differ in the last digits)",
        threads,
    )
