"""Measuring: how good a model is on held-out data, beside honest baselines; shared by processes, kept through a kill."""
