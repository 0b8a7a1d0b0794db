"""One of two ranks of test_nn.py: trains a quantiser on features of its own. Saves its state.

Arguments: rank, folder, whether the model is in DistributedDataParallel.
"""

import sys

import torch
import torch.distributed as dist

from soho_fast.ops.nn import VectorQuantizer


def main(rank: int, folder: str, wrapped: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)  # the codes of the ranks differ at first
    quantizer = VectorQuantizer(6, 16)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), quantizer)
    if wrapped:
        model = torch.nn.parallel.DistributedDataParallel(model)
    for step in range(8):
        features = torch.randn(40 if rank or step else 0, 6)
        features[:3] = torch.nan
        quantized, _, loss = model(features)
        (quantized.nan_to_num().sum() + 0 * loss.nan_to_num()).backward()
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], bool(int(sys.argv[3])))
