"""Tar shards, WebDataset's format, as img2dataset writes CC3M, CC12M and SBU: indexed, each image at hand by number.

Read here and not by a library, because webdataset streams and cannot resume to the bit, and its indexed part, wids,
keeps a Python list of every opened shard in each process, passes over the names in PAX headers and checks no header.

`members` finds the files of a tar, `indexing` what they are, `index` maps that into memory; `store` gives an image's
bytes by name, `records` images with captions and the order of an epoch; `writing` and `__main__` are the command.
"""
