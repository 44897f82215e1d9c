"""Progress, the second baseline of the BARL paper: each step is worth how far it raises the true answer's probability.

    A[t] = outcome + P[S, 0] - P[t, 0] on all tokens of step t, less a baseline

Source: Zhang et al., Beyond Markovian, arXiv 2505.20561v2.
"""

from system.algorithms.barl.barl import Barl
from system.algorithms.barl.options import ProgressOptions


class Progress(Barl):
    """BARL with the reference answer alone."""

    Options = ProgressOptions


ALGORITHM = Progress
