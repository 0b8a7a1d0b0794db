"""A model as a folder that runs without this package: `soho export MODEL OUT`."""
