"""Images a second of a loader process: decoders, and what it costs to normalise there instead of on the device.

Each way is checked against the others before it is timed, in seconds of the processor: a loader process has one core.
"""

import time

import pytest
import torch

from benchmarks.data.decoding import SIZES, decoders, photographs
from soho_fast.data.images import SohoImageProcessor

pytestmark = pytest.mark.full

BATCH = 8
PROCESSOR = SohoImageProcessor()
WAYS = {"bytes": PROCESSOR.collate_bytes, "normalised there": PROCESSOR.collate}


@pytest.fixture(autouse=True)
def one_thread():
    """As in a loader process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.benchmark(timer=time.thread_time)
@pytest.mark.parametrize("method", decoders(PROCESSOR))
@pytest.mark.parametrize("size", SIZES)
def test_decode_and_resize(size, method, benchmark):
    files, way = photographs(*SIZES[size]), decoders(PROCESSOR)[method]
    for data in files:
        ours, found = PROCESSOR.decode(data), way(data)
        # Pillow's resizing rounds after each axis; the decoders give the same.
        most = 1 if method == "Pillow, resizing too" else 0
        assert found.shape == ours.shape and (found.int() - ours.int()).abs().max() <= most
    benchmark.group = f"decode and resize {size}"
    benchmark.extra_info.update(images=len(files), method=method)
    benchmark.pedantic(lambda: [way(data) for data in files], rounds=15, warmup_rounds=2)


@pytest.mark.benchmark(timer=time.thread_time)
@pytest.mark.parametrize("method", WAYS)
def test_batch(method, benchmark):
    wide, tall = (photographs(*size) for size in ((640, 480), (480, 640)))
    files, collate = [*wide, *tall, *wide[:2]], WAYS[method]
    batch = collate([PROCESSOR.decode(data) for data in files])
    floats = PROCESSOR.normalised(batch) if method == "bytes" else batch
    assert torch.equal(floats["pixel_values"], PROCESSOR.collate([*map(PROCESSOR.decode, files)])["pixel_values"])
    num_bytes = sum(value.nbytes for value in batch.values())
    benchmark.group = f"decode, resize and batch {BATCH} of 640 x 480"
    benchmark.extra_info.update(images=BATCH, method=method, bytes_per_image=num_bytes // BATCH)
    benchmark.pedantic(lambda: collate([*map(PROCESSOR.decode, files)]), rounds=8, warmup_rounds=1)
