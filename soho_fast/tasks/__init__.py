"""Tasks: how examples become batches, the loss's inputs, and the measures."""
