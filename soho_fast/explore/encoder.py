"""A function of the user in the place of a model: for an explorer of arrays, which codes another image has."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from soho_fast.common.errors import UserError
from soho_fast.common.images import one_line
from soho_fast.explore.asking import AskedModel, Refused
from soho_fast.explore.bundle import Bundle
from soho_fast.explore.from_arrays import Array, Metric, check_batch, check_codebook, check_metric, look_up
from soho_fast.explore.serve import at_hand, serve
from soho_fast.explore.sources import as_array, digest_of, open_image

Encode = Callable[[Image.Image], Any]


def serve_explorer(
    explorer: str | os.PathLike[str],
    encode: Encode,
    *,
    codebook: Array | None = None,
    metric: Metric = "euclidean",
    host: str = "127.0.0.1",
    port: int = 8000,
    seconds: float = 60.0,
) -> None:
    """Serve an explorer, with a page that shows which codes an image has by a function of yours, until Ctrl-C.

    In a notebook it runs until the kernel is interrupted.

    Args:
        explorer: Its folder, of images.
        encode: Takes an image, PIL in RGB, as large as it was uploaded, and gives its codes, integers (h, w) or of Q
            levels (h, w, Q), -1 where a patch has none, or its features, floating point (h, w, C), whose nearest codes
            are looked up. It is called in a thread of its own, for one image at a time.
        codebook, metric: What the explorer was built with, see `build_from_arrays`, where `encode` gives features.
        host: Address to listen on; at "127.0.0.1" this machine alone can ask.
        port: 0 takes any free one.
        seconds: After which an answer is given up.

    Raises:
        FileNotFoundError, BundleError: there is no explorer, or a damaged one.
        UserError: it is of clips, or of another codebook; or the server can't listen there.
        TypeError, ValueError: `encode` is no function, or `codebook` no codebook.
    """
    if port not in range(65536):
        raise UserError(f"port: expected 0 to 65535, got {port!r}")
    folder = str(Bundle(explorer).folder)
    asking = at_hand(folder, upload_bytes=20 * 2**20, seconds=seconds)
    encoder = Encoder(encode, asking.shown.bundle.meta, codebook, metric)
    model = asking.models["encode"] = AskedModel("encode", "your function", "codes", lambda: encoder)
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(model):
        serve(asking, host, port)


class Encoder:
    """Answers "codes" as `SeeingPipeline.ask` does.

    Args:
        encode: See `serve_explorer`.
        meta: The explorer's, see `bundle`, data/meta.js.
        codebook, metric: See `serve_explorer`.

    Raises:
        UserError: the explorer is of clips, or of another codebook.
        TypeError, ValueError: an argument is something else.
    """

    def __init__(self, encode: Encode, meta: Mapping[str, Any], codebook: Array | None, metric: Metric) -> None:
        if meta.get("has_sound"):
            raise UserError("explorer: expected one of images, whose codes `encode` finds, got one of clips")
        if not callable(encode):
            raise TypeError(f"encode: expected a function of an image, got {type(encode).__name__}")
        check_metric(metric)
        shape = meta["num_levels"], meta["num_codes"] // meta["num_levels"]
        # Of an unknown codebook what an index can be is known all the same.
        self._levels = np.empty((*shape, 0), np.float32) if codebook is None else check_codebook(codebook, metric)
        if codebook is not None and not meta["weights"]:
            raise UserError("codebook: expected none, as the explorer was built without one; encode must give codes")
        if codebook is not None and digest_of(self._levels[0]) != meta["weights"]:
            has = f"which has {meta['num_codes']:,} codes in all"
            raise UserError(f"codebook: not that of the explorer, {has}, or not as it is by metric {metric!r}")
        self._encode, self._metric = encode, metric

    def ask(self, question: str, images: Sequence[bytes], texts: Sequence[str], **unused: Any) -> dict[str, Any]:
        """The codes of the first level of an image's patches. Raises ImageError: it can't be read. Refused: `encode`
        fails, or gives something else."""
        image = open_image(io.BytesIO(images[0]), "image", least=None)
        try:
            found = as_array(self._encode(image))
            given = "features" if found.dtype.kind == "f" else "index"
            if given == "features" and not self._levels.size:
                raise ValueError("expected codes, integers (rows, columns); features need codebook=")
            batch: dict[str, Any] = dict.fromkeys(("features", "index", "captions", "names"))
            batch |= {"images": [image], given: [found]}
            ((index_Qhw, _),) = look_up(check_batch(batch, self._levels, 0, {}), self._levels, self._metric)
        except Exception as error:  # The function may fail with errors of any kind.
            raise Refused(500, f"encode: {one_line(error)}") from error
        rows, columns = index_Qhw.shape[1:]
        codes = [None if code < 0 else code for code in index_Qhw[0].ravel().tolist()]
        sizes = {"rows": rows, "columns": columns, "patches_high": rows, "patches_wide": columns}
        return {"images": [{**sizes, "codes": codes}]}
