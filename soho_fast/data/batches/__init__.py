"""From records to batches: which texts go with an image, samples that depend on (seed, epoch, index), one collator."""
