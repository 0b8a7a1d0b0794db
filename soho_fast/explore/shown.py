"""The images of an explorer as models are given them: the image itself where it can be found, else its small copy."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from typing import Any

from soho_fast.common.errors import print_line
from soho_fast.explore.bundle import Bundle, BundleError, image_path

# Images by which a model's codes are compared with the explorer's.
_MOST_COMPARED = 8


class ShownImages:
    """The images of a bundle.

    Of a run's explorer the originals are found in the data sets of the run's recipe. Nothing else is ever read: an
    image names a data set and an image in it, and what the data set lists is looked up.

    Args:
        bundle: Which may be another's: no name in it is a path, and no link leads out of it.
        run: Folder of the run; None where there is none, and so no original.
        say: Called once, when the data sets are read, and when they can't be.
    """

    def __init__(self, bundle: Bundle, run: str | None = None, say: Callable[[str], None] = print_line) -> None:
        self.bundle = bundle
        self._run, self._say, self._lock = run, say, threading.Lock()
        self._originals: dict[tuple[str, str], Any] | None = {} if run is None else None

    def _original(self, data_set: str, name: str) -> bytes | None:
        """An image's file, or None: it can't be found or read."""
        with self._lock:
            if self._originals is None:
                self._originals = self._read_data_sets()
        try:
            return self._originals[data_set, name].read()
        except (KeyError, OSError):
            return None

    def _read_data_sets(self) -> dict[tuple[str, str], Any]:
        from soho_fast.explore.build import open_model

        of_all: dict[str, Any] = {"recipe": None, "checkpoint": None, "split": [], "images": 0, "fields": []}
        self._say(f"reading the data sets of {self._run}, to let models see the images themselves ...")
        try:
            images = open_model(argparse.Namespace(model=self._run, **of_all), lambda line: None).images
            return {(image.data_set, image.ref.name): image.ref for image in images.images}
        except (ValueError, OSError, ImportError) as error:
            self._say(" ".join(f"they can't be read, so models see the small copies: {error}".split()))
            return {}

    def is_replaced(self) -> bool:
        """Whether another explorer, or none, lies in the bundle's folder by now."""
        try:
            return Bundle(self.bundle.folder).meta != self.bundle.meta
        except (OSError, BundleError):
            return True

    def read(self, number: int) -> tuple[bytes, str]:
        """An image's file, and whether it is the "original" or the "small copy".

        Raises:
            BundleError: it can't be read; the message names it.
        """
        try:
            image = self.bundle.image(number)
            original = self._original(self.bundle.data_set(image), image["name"])
            if original is not None:
                return original, "original"
            folder = self.bundle.folder.resolve()
            if not (folder / image_path(number)).resolve(strict=True).is_relative_to(folder):
                raise BundleError(f"{image_path(number)} leads out of the explorer")
            return self.bundle.content(image_path(number)), "small copy"
        except (OSError, LookupError, TypeError) as error:
            raise BundleError(f"{image_path(number)} can't be read") from error

    def agreement(self, codes_of: Callable[[bytes], tuple[int, int, list[int]]]) -> float | None:
        """How many of the patches of some images, of all in between 0 and 1, have the code that the explorer shows.

        Args:
            codes_of: gives rows, columns and codes of an image's file.

        Returns:
            None where no image has the explorer's rows and columns.
        """
        count = self.bundle.meta["num_shown"]
        same = total = 0
        for number in range(0, count, max(1, count // _MOST_COMPARED)):
            try:
                image = self.bundle.image(number)
                rows, columns, codes = codes_of(self.read(number)[0])
            except ValueError:  # It is reported when it is asked about.
                continue
            if (rows, columns) == (image["rows"], image["columns"]):
                total += len(codes)
                same += sum(own == shown for own, shown in zip(codes, image["index"][: len(codes)], strict=True))
        return same / total if total else None
