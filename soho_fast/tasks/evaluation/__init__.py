"""How good a model is on held-out data, beside honest baselines: metrics, shared by processes, kept through a kill."""
