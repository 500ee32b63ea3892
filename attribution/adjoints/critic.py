r"""By how much advantages change with the rewards if the critic is corrected too.

With the critic held fixed a correction of rewards changes advantages although training with corrected rewards would
have learned other values. The sign of all corrections together is then biased: where they only shift rewards that never
mattered, a drop of the misbehaviour is still predicted. The critic's change is taken to be linear in its latent
features X = [latent, 1] (LSTD, Bradtke and Barto 1996; ridge rho): with c the change of the rewards and X' the features
of what followed,

.. math::
    w = (X^T (X - \gamma X') + \rho I)^{-1} X^T c, \quad
    D = \mathrm{gae}(c + \gamma X' w - X w), \quad \rho = 10^{-3} \operatorname{tr}(X^T X) / \dim

X' is 0 where an episode terminated, and of the last observation where a time limit cut it. For potential-based shaping
in tabular features D is 0, as it should be (Ng et al. 1999). Used for the sign, not for the order of groups.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .gae import GaeAdvantages
from .signal import Scores

_RIDGE = 1e-3


def corrected_critic_change(
    signal: GaeAdvantages, features: NDArray[np.float64], following: NDArray[np.float64], change: Scores
) -> Scores:
    """Return by how much raw advantages change with the rewards if the critic learns from them too, D [N, G].

    Args:
        signal: of the window.
        features: X [N, K].
        following: X' [N, K], of the state after each transition.
        change: of each reward as paid, in each of G changes, [N, G].
    """
    learned = change * signal.reward_scale[:, None]
    second_moment = features.T @ features
    ridge = _RIDGE * float(np.trace(second_moment)) / len(second_moment)
    system = second_moment - signal.gamma * features.T @ following + ridge * np.eye(len(second_moment))
    weights = np.linalg.solve(system, features.T @ learned)
    return signal.sums(learned + (signal.gamma * following - features) @ weights)
