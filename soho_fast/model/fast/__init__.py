"""The same model, faster: for training on a CPU or a GPU, for scoring pairs, and prepared for inference."""
