"""What a dictionary does beside the paper's eq. 2 to 5: its start, resets, levels, and its figures.

`visual_dictionary.py: VisualDictionary` calls each part; none of them knows it. `usage.py` and `draws.py` serve any
quantiser.
"""
