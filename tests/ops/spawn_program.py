"""A prepared codebook in a DataLoader's worker and in a process, both spawned; test_prepared_codebook.py runs it.

Prints how far it came.
"""

import torch
from torch.utils.data import DataLoader, Dataset

from soho_fast import ops


class Quantised(Dataset):
    """Indices of random features in a prepared codebook, looked up where the items are loaded."""

    def __init__(self, prepared: ops.PreparedCodebook, features: torch.Tensor):
        self.prepared, self.features = prepared, features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, item: int) -> torch.Tensor:
        return ops.codebook_lookup(self.features[item], self.prepared)


def serve(connection, dataset: Quantised) -> None:
    """Looks up the items that the connection asks for."""
    while (item := connection.recv()) is not None:
        connection.send(dataset[item].tolist())


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    features, codebook = torch.randn(4, 9, 8, generator=generator), torch.randn(40, 8, generator=generator)
    expected = ops.codebook_lookup(features, codebook)
    dataset = Quantised(ops.prepare_codebook(codebook), features)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(torch.cat(list(loader)), expected)
    print("loader")

    spawn = torch.multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(theirs, dataset))
    process.start()
    ours.send(0)
    assert ours.recv() == expected[0].tolist()
    print("process")
    dataset.prepared.codebook.neg_()  # lies in memory that a spawned process could share
    ours.send(1)
    assert ours.recv() == expected[1].tolist()
    print("alone")
    ours.send(None)
    process.join()


if __name__ == "__main__":
    main()
