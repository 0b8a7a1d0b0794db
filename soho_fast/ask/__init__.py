"""Ask a model: `pipeline.SohoPipeline`, `python -m soho_fast.ask` for one question, `many.py` for a file of them."""
