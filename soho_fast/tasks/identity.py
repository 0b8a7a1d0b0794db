"""Which fields of a recipe tell what is trained; nothing heavy is imported here."""

from soho_fast.engine.changes import NOT_COMPARED as OF_EVERY_TASK

OF_A_STUDY = (*OF_EVERY_TASK, "data_roots.*", "corpus.folder", "model.pretrained")
"""Patterns of what does not tell one run of a study from another, since it is where things lie or how a run is carried
out; the model that a run starts from is identified by that model's own run."""

# By pattern of a recipe's field: why two runs that differ there train the same, or what is compared instead.
NOT_COMPARED = {
    "data_roots.*": "where things lie; what is read from there is compared",
    "corpus.folder": "where it lies",
    "data.sources.*": "the records read from there are compared",
    "data.heldout.*": "the records read from there are compared",
    "data.splits.*": "the records read from there are compared",
    "data.placeholders": "the records that are left are compared",
    "data.missing_images": "the records that are left are compared",
    "data.tokenizer": "its words, and what it makes of a text, are compared",
    "model.pretrained": "its weights, and words other than the tokenizer's, are compared",
    "model.text_encoder": "its weights are compared",
    "model.backbone": "its weights are compared",
}

# Where things lie, on each machine its own place: what is read from there is compared, between two starts of a run and
# between its ranks.
PLACES = (
    "data_roots.*", "corpus.folder", "data.sources.*", "data.heldout.*", "data.splits.*", "data.placeholders",
    "data.tokenizer", "model.pretrained", "model.text_encoder", "model.backbone",
)  # fmt: skip

# Fields of SohoConfig that change which tensors there are.
SIZES = (
    "backbone",
    "backbone_stride",
    "use_dictionary",
    "num_codes",
    "num_levels",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "dictionary_batch_norm",
    "dictionary",
    "dictionary_options",
    "fusion",
    "official",
)
FIXED = (
    "data.tokenizer", "labels", "model.preset", "model.bag_of_words_head",
    *(f"model.config.{name}" for name in SIZES),
)  # fmt: skip

# Where a run starts.
STARTING = ("model.pretrained", "model.text_encoder", "model.backbone", "model.answer_bias", "model.config.*init*")

# The best model is chosen by these metrics, so these are compared; but `evaluate` takes them without training.
EVALUATED_BY = (
    "held-out data", "held-out images", "data.validate", "data.folds", "data.scoring",
)  # fmt: skip
