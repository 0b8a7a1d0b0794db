"""Readers: one per published format, all to the records of `records.py`."""
