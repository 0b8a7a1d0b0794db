"""What reading image files has in common, wherever they lie: limits, and errors in a line."""

from __future__ import annotations

MAX_FILE_BYTES = 2**29
"""The largest image file that is read, in a folder or in an archive: 512 MiB, more than 170 million RGB pixels."""


def one_line(error: Exception) -> str:
    """What an error of a decoder says, in a line that can be shown: its text may hold bytes of the file."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:200]
    if text and isinstance(error, (OSError, ValueError)):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_size(num_bytes: int) -> None:
    """Raises OSError: a file larger than any image."""
    if num_bytes > MAX_FILE_BYTES:
        raise OSError(f"{num_bytes:,} bytes; expected an image of at most {MAX_FILE_BYTES:,}")
