"""Data: one reader per published format, images, text. Knows no model.

`AutoProcessor` and `AutoImageProcessor` know SOHO's once this package is imported.
"""

from soho_fast.common.extras import from_extra

with from_extra("train"):
    from soho_fast.common.errors import CorruptImageError
    from soho_fast.data.images import SohoImageProcessor, decode_image
    from soho_fast.data.processor import SohoProcessor
    from soho_fast.data.readers.captions import (
        karpathy_coco_ids,
        karpathy_flickr_ids,
        read_coco_captions,
        read_karpathy,
        read_visual_genome,
    )
    from soho_fast.data.readers.json_lines import read_json_lines, read_json_lines_questions
    from soho_fast.data.readers.questions import VqaAnswers, VqaRecord, read_easy_vqa, read_vqa
    from soho_fast.data.readers.records import ImageRef, ImageTextRecord, ReadReport
    from soho_fast.data.readers.statements import ENTAILMENT_LABELS, Nlvr2Record, SnliVeRecord, read_nlvr2, read_snli_ve
    from soho_fast.data.shards.records import ShardRecords, read_shards
    from soho_fast.data.text import content_words, load_tokenizer, mask_tokens

__all__ = [
    "ENTAILMENT_LABELS",
    "CorruptImageError",
    "ImageRef",
    "ImageTextRecord",
    "Nlvr2Record",
    "ReadReport",
    "ShardRecords",
    "SnliVeRecord",
    "SohoImageProcessor",
    "SohoProcessor",
    "VqaAnswers",
    "VqaRecord",
    "content_words",
    "decode_image",
    "karpathy_coco_ids",
    "karpathy_flickr_ids",
    "load_tokenizer",
    "mask_tokens",
    "read_coco_captions",
    "read_easy_vqa",
    "read_json_lines",
    "read_json_lines_questions",
    "read_karpathy",
    "read_nlvr2",
    "read_shards",
    "read_snli_ve",
    "read_visual_genome",
    "read_vqa",
]
