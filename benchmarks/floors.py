"""The least that a window of exact scores takes: its products, one factorisation and one solution, as bare BLAS calls.

Layers with inputs of I numbers (a bias counts as one) and outputs of O: two symmetric products of U rows each, two
products with the targets' steps, the Cholesky factor of U x U and its solution for F right-hand sides. No pass over a
matrix, no policy and no copy is counted.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike
from scipy.linalg import cho_factor, cho_solve, get_blas_funcs
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn


def necessary(
    policy: ActorCriticPolicy, rows: int, steps: int, failures: int, dtype: DTypeLike = np.float32
) -> Callable[[], None]:
    """Return the calls for one window of a policy of linear layers.

    Args:
        policy: whose actor's layers are counted.
        rows: U, distinct rows of the window.
        steps: of all targets.
        failures: F.
        dtype: precision.
    """
    generator = np.random.default_rng(0)
    layers = [layer for layer in (*policy.mlp_extractor.policy_net, policy.action_net) if isinstance(layer, nn.Linear)]
    widths = [width for layer in layers for width in (layer.in_features + 1, layer.out_features)]
    mine = [np.asfortranarray(generator.normal(size=(rows, width)), dtype=dtype) for width in widths]
    theirs = [np.asfortranarray(generator.normal(size=(width, steps)), dtype=dtype) for width in widths]
    out = np.empty((rows, rows), dtype, order="F")
    products = np.empty((rows, steps), dtype, order="F")
    matrix = np.eye(rows, dtype=dtype, order="F") + np.asarray(mine[0] @ mine[0].T / rows, order="F")
    right = np.asfortranarray(generator.normal(size=(rows, failures)), dtype=dtype)
    syrk, gemm = get_blas_funcs(("syrk", "gemm"), (out,))

    def calls() -> None:
        for values in mine:
            syrk(1.0, values, c=out, overwrite_c=1, lower=1)
        for values, others in zip(mine, theirs, strict=True):
            gemm(1.0, values, others, c=products, overwrite_c=1)
        factor = cho_factor(matrix, lower=True, check_finite=False)
        cho_solve(factor, right, check_finite=False)

    return calls
