"""One rank of test_two_ranks.py: statistics of its half, all-reduced in one buffer, then the move. Saves the codebook.

Arguments: rank, number of ranks, rendezvous file, output file.
"""

import sys

import torch
import torch.distributed as dist

from soho_fast import ops

NUM_CODES, NUM_CHANNELS = 23, 12


def main(rank: int, num_ranks: int, rendezvous: str, output: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_ranks)
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(NUM_CODES, NUM_CHANNELS, generator=generator)
    for _ in range(5):
        # Eighths add without rounding, so the joined batch must give the same bits.
        features = (torch.randn(64, NUM_CHANNELS, generator=generator) * 8).round() / 8
        mine = features.chunk(num_ranks)[rank]
        index = ops.codebook_lookup(mine, codebook)
        counts, sums = ops.codebook_stats(mine, index, NUM_CODES)
        buffer = torch.cat([counts[:, None], sums], 1)
        dist.all_reduce(buffer)
        ops.codebook_ema_(codebook, buffer[:, 0].contiguous(), buffer[:, 1:], 0.9)
    torch.save(codebook, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
