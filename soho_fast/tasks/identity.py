"""Which fields of a recipe tell what is trained; nothing heavy is imported here."""

# Where things lie, on each machine its own place: by pattern of a recipe's field, what is compared instead, between two
# starts of a run and between its ranks.
PLACES = {
    "data_roots.*": "what is read from there",
    "corpus": "what is read from there",
    "data.sources.*": "the records read from there",
    "data.heldout.*": "the records read from there",
    "data.splits.*": "the records read from there",
    "data.tokenizer": "its words, and what it makes of a text",
    "model.pretrained": "its weights, and words other than the tokenizer's",
    "model.text_encoder": "its weights",
    "model.backbone": "its weights",
}

# By pattern: why two runs that differ there train the same, or what is compared instead.
NOT_COMPARED = {
    **PLACES,
    "data.missing_images": "the records that are left",
}

# Words and labels are known by their numbers in a checkpoint's tensors.
FIXED = ("data.tokenizer", "labels")
