"""Small models of every kind, whose answers differ from question to question."""

import torch

from soho_fast.model import (
    SohoConfig,
    SohoForImageTextRetrieval,
    SohoForPreTraining,
    SohoForQuestionAnswering,
    SohoForVisualEntailment,
    SohoForVisualReasoning,
)

SMALL = {
    "backbone": "resnet10", "visual_pool": 1, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "num_codes": 32, "max_position_embeddings": 16, "vocab_size": 31,
}  # fmt: skip
ANSWERS = ["yes", "no", "2"]
LABELS = {
    SohoForQuestionAnswering: ANSWERS,
    SohoForVisualReasoning: ["False", "True"],
    SohoForVisualEntailment: ["entailment", "neutral", "contradiction"],
}
KINDS = {
    "answer": SohoForQuestionAnswering,
    "rank": SohoForImageTextRetrieval,
    "entails": SohoForVisualEntailment,
    "compare": SohoForVisualReasoning,
    "pretrained": SohoForPreTraining,
}


def save_small(kind, processor, folder, **config):
    """Write a model and its processor; returns the model."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(LABELS[kind]))} if kind in LABELS else {}
    model = kind(SohoConfig.from_preset(**SMALL, **names, **config)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(15.0 if weight.dim() == 2 else 1.0)
        # Features that differ from image to image, and codes among them.
        encoder, images_8CHW = model.soho.visual_encoder, torch.randn(8, 3, 4, 4).repeat_interleave(16, 2)
        images_8CHW = images_8CHW.repeat_interleave(16, 3)
        feat_ND = model.soho.encode_features(images_8CHW)[0].flatten(0, 1)
        scale_D = 2 / feat_ND.std(0)
        encoder.projection.weight.mul_(scale_D.view(-1, 1, 1, 1))
        encoder.projection.bias.copy_((encoder.projection.bias - feat_ND.mean(0)) * scale_D)
        model.soho.visual_dictionary.codebook.copy_(model.soho.encode_features(images_8CHW)[0].flatten(0, 1))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model
