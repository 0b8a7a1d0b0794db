"""k-means on the ops, with scikit-learn's interface: `KMeans`, `MiniBatchKMeans` for many rows, and
`ResidualKMeans` for codes of several levels.

It needs torch alone. Letters in tensor names: N rows, K clusters, C channels, L levels.
"""

from soho_fast.cluster.estimator import NotFittedError
from soho_fast.cluster.kmeans import KMeans
from soho_fast.cluster.minibatch import MiniBatchKMeans
from soho_fast.cluster.residual import ResidualKMeans, semantic_ids

__all__ = ["KMeans", "MiniBatchKMeans", "NotFittedError", "ResidualKMeans", "semantic_ids"]
