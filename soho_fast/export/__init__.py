"""A model as a folder that runs where torch alone is installed: `python -m soho_fast.export MODEL OUT`."""
