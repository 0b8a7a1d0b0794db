"""Data: one reader per published format, images, text. Knows no model."""
