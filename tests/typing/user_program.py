"""What a user may write; `test_typing.py` has a type checker read it, nothing runs it."""

from pathlib import Path
from typing import reveal_type

import numpy as np
import torch

from soho_fast import ops
from soho_fast.ask.pipeline import SohoPipeline
from soho_fast.cluster import KMeans, ResidualKMeans
from soho_fast.studies.results import read_rows

# A pipeline, asked one question and many.
soho = SohoPipeline.from_pretrained("runs/mini_vqa")
one = soho.answer("a.jpg", "what is it?")
reveal_type(soho)
reveal_type(one)
reveal_type(one[0]["answer"])
reveal_type(one[0]["score"])
reveal_type(soho.answer(torch.zeros(3, 64, 64, dtype=torch.uint8), ["what is it?", "how many?"], batch_size=4))
reveal_type(soho.answer((path for path in ["a.jpg", "b.jpg"]), "what is it?"))
reveal_type(soho.answer(["a.jpg", "b.jpg"], "what is it?", errors="return"))
reveal_type(soho.rank("a.jpg", ["two dogs", "a cat"], top_k=1))
reveal_type(soho.rank(["a.jpg", "b.jpg"], [["two dogs"], ["a cat"]]))
reveal_type(soho.entails("a.jpg", "an animal is there")[0]["label"])
reveal_type(soho.compare("left.png", "right.png", "both show a dog"))
reveal_type(soho({"image": "a.jpg", "question": "what is it?"}))
reveal_type(soho([{"image": "a.jpg", "question": "what is it?"}]))
reveal_type(soho.encode("a.jpg"))
reveal_type(soho.encode("a.jpg").columns)
reveal_type(soho.encode(["a.jpg"])[0].features)

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
reveal_type(ops.codebook_stats(rows_NC, index, 5))

# The rows of a study.
rows = read_rows([Path("results.jsonl")])
reveal_type(rows)
reveal_type(rows[0]["condition"])
reveal_type(rows[0]["metrics"]["mvm"])
reveal_type(rows[0].get("peak_memory_gb"))
