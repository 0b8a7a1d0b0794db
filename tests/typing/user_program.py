"""What a user may write; `test_typing.py` has a type checker read it, nothing runs it."""

from typing import reveal_type

import numpy as np
import torch

from soho_fast import ops
from soho_fast.ask.pipeline import SohoPipeline
from soho_fast.cluster import KMeans, ResidualKMeans

# A pipeline; what it answers depends on what it is asked.
soho = SohoPipeline.from_pretrained("runs/mini_vqa")
reveal_type(soho)

# k-means.
rows_NC = torch.randn(100, 8)
kmeans = KMeans(n_clusters=5).fit(rows_NC)
reveal_type(kmeans)
reveal_type(kmeans.predict(rows_NC))
reveal_type(KMeans(n_clusters=5).fit_predict(np.zeros((100, 8), dtype=np.float32)))
reveal_type(kmeans.fit_transform(rows_NC))
reveal_type(kmeans.labels_)
reveal_type(kmeans.inertia_)
reveal_type(ResidualKMeans(n_levels=2).fit_predict(np.zeros((100, 8), dtype=np.float32)))

# The ops.
codebook = torch.randn(5, 8)
index = ops.codebook_lookup(rows_NC, codebook, metric="cosine")
reveal_type(index)
reveal_type(ops.codebook_lookup(rows_NC, ops.prepare_codebook(codebook), return_distance=True))
reveal_type(ops.prepare_codebook(codebook).metric)
reveal_type(ops.codebook_stats(rows_NC, index, 5, valid=index >= 0))
reveal_type(ops.straight_through(rows_NC, codebook, index, backend="reference"))
reveal_type(ops.codebook_ema_(codebook, index, codebook, decay=0.99))
reveal_type(ops.scatter_mean_ema_(codebook, rows_NC, index, 0.99))
reveal_type(ops.sample_group(index, generator=torch.Generator()))
reveal_type(ops.group_mask(rows_NC, index, codebook, index, inplace=True))
reveal_type(ops.available_backends())
