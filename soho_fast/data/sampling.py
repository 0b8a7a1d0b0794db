"""Names of the random streams."""

# First word of the entropy of each stream of random numbers, so that streams with the same (seed, epoch) differ. The
# engine's order of the samples is stream 1.
SAMPLE_STREAM = 2
EVALUATION_STREAM = 3
