"""Data: one reader per published format, images, text. Knows no model."""

from soho_fast.common.extras import from_extra

with from_extra("train"):
    import safetensors  # noqa: F401 - of what this extra brings, what is loaded fastest
