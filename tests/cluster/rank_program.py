"""One rank of test_processes.py: fits its rows in several ways and saves what it found.

Arguments: rank, number of ranks, rendezvous file, rows file, output file.
"""

import sys

import torch
import torch.distributed as dist

from soho_fast.cluster import KMeans, MiniBatchKMeans, ResidualKMeans

INITS = ("mini-batch", "k-means++", "random", "given")


def main(rank: int, num_ranks: int, rendezvous: str, rows_file: str, output: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_ranks)
    saved = torch.load(rows_file)
    rows, weight = saved["rows"], saved["weight"]
    # Unequal shares, one of them empty where there are three.
    cuts = {1: [len(rows)], 2: [len(rows) // 3], 3: [len(rows) // 3, len(rows) // 3]}[num_ranks]
    cuts = [0, *cuts, len(rows)]
    mine = slice(cuts[rank], cuts[rank + 1])
    found = {}
    for init in INITS:
        start = saved["given"] if init == "given" else init
        for weighted in (False, True):
            model = KMeans(30, init=start, n_init=1, tol=0, random_state=3)
            model.fit(rows[mine], sample_weight=weight[mine] if weighted else None)
            found[init, weighted] = (model.cluster_centers_, model.labels_, model.inertia_, model.n_iter_)
    batched = KMeans(30, init="mini-batch", tol=0, random_state=3).fit(lambda: iter(rows[mine].split(77)))
    found["batched", False] = (batched.cluster_centers_, batched.labels_, batched.inertia_, batched.n_iter_)
    residual = ResidualKMeans(3, 10, random_state=3).fit(rows[mine])
    found["residual", False] = (residual.cluster_centers_, residual.labels_, residual.inertia_, residual.n_iter_)
    wide = KMeans(30, init="random", n_init=1, tol=0, random_state=3).fit((rows[mine] * 8).long() + 1_700_000_000)
    found["wide", False] = (wide.cluster_centers_, wide.labels_, wide.inertia_, wide.n_iter_)
    unseeded = KMeans(4).fit(rows[mine])
    found["unseeded", False] = (unseeded.cluster_centers_, unseeded.labels_, unseeded.inertia_, unseeded.n_iter_)
    mini = MiniBatchKMeans(20, batch_size=100, random_state=3).fit(rows[mine])
    for part in rows[mine].split(len(rows[mine]) // 2 + 1) if num_ranks == 2 else ():
        mini.partial_fit(part)
    found["minibatch", False] = (mini.cluster_centers_, mini.labels_, mini.inertia_, mini.n_iter_)
    far = torch.randn(30, 16, generator=torch.Generator().manual_seed(0)).repeat(100, 1) * 10
    far += torch.randn(3000, 16, generator=torch.Generator().manual_seed(1))
    share = slice(0 if rank == 0 else 10, 10 if rank < num_ranks - 1 else 3000)  # the first rank has the heavy rows
    heavy = MiniBatchKMeans(30, init="random", batch_size=200, random_state=3)
    heavy.fit(far[share], sample_weight=torch.where(torch.arange(3000) < 10, 1e4, 1.0)[share])
    found["heavy", True] = (heavy.cluster_centers_, heavy.labels_, heavy.inertia_, heavy.n_iter_)
    alone = KMeans(4, random_state=0, distributed=False).fit(rows[mine] if len(rows[mine]) else rows)
    found["alone", False] = (alone.cluster_centers_, alone.labels_, alone.inertia_, alone.n_iter_)
    refused = []
    begun = MiniBatchKMeans(4, distributed=False)
    if rank:
        begun.partial_fit(rows)
    begun.set_params(distributed=True)
    refusals = [
        (KMeans(4).fit, rows[mine, :5] if rank else rows[mine]),
        (KMeans(4).fit, rows[mine] / 0 if rank == 0 else rows[mine]),
        (KMeans(4 + rank).fit, rows[mine]),
        (KMeans(4, init=rows[rank : rank + 4]).fit, rows[mine]),
        (begun.partial_fit, rows[mine]),
    ]
    for fit, bad in refusals if num_ranks > 1 else ():
        try:
            fit(bad)
        except ValueError as error:
            refused.append(str(error))
    torch.save({"found": found, "refused": refused}, output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
