"""The dictionary explorer: what each code of a codebook means, from a model or from arrays, as pages to look at."""
