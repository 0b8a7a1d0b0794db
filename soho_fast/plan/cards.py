"""What the makers' data sheets say of cards, and how much of it products reach in published training runs.

Read in November 2026 where others quote them: V100 in the table of NVIDIA's paper on Volta (maosong.website/p/
nvidia-gpu-specs) and in Dell's reference guide of Ready Solutions for AI (900 GB/s of memory, 150 GB/s of NVLink each
way); A100 and H100 at glennklockwood.com/garden/processors, which names NVIDIA's data sheet and papers.

`benchmarks/plan/published.py` counts the published models as a plan counts a recipe; the efficiencies are those with
which it takes the published time.
"""

from dataclasses import dataclass

GIB = 2**30
MACHINE = 8
"""Cards of a machine."""


@dataclass(frozen=True)
class Card:
    """One GPU.

    Args:
        name: In full.
        peak: Dense products a second (multiplications and additions), by precision.
        memory: Bytes.
        bandwidth: Bytes of memory a second.
        interconnect: Bytes a second to other cards of the machine, each way.
        network: Bytes a second from a machine of `MACHINE` cards to others, each way: the InfiniBand of NVIDIA's DGX.
        efficiency: Fraction of the peak that products reach where memory does not bound them, of the CNN and of the
            Transformer.
        efficiency_from: The runs of which that is.
        source: The data sheet.
    """

    name: str
    peak: dict[str, float]
    memory: int
    bandwidth: float
    interconnect: float
    network: float
    efficiency: dict[str, float]
    efficiency_from: str
    source: str

    def precision(self, wanted: str) -> str:
        """What `engine.precision` becomes on this card: `auto` is bf16 where it has that, else fp16.

        Raises:
            ValueError: the card has it not.
        """
        if wanted == "auto":
            return "bf16" if "bf16" in self.peak else "fp16"
        if wanted not in self.peak:
            raise ValueError(
                f"engine.precision: {self.name} computes in {', '.join(self.peak)}, got {wanted}; choose one of these "
                "or auto"
            )
        return wanted


@dataclass(frozen=True)
class Rates:
    """What is taken of rates; where that comes from is among a plan's assumptions.

    Args:
        data_rate: Images a second that a loader process makes ready.
        file_kb: Kilobytes of an image's file.
    """

    data_rate: float = 390.0
    file_kb: float = 157.0


CARDS = {
    "v100": Card(
        "NVIDIA V100 SXM2 32 GB",
        {"fp16": 125e12, "float32": 15.7e12},
        32 * GIB,
        900e9,
        150e9,
        50e9,
        {"CNN": 0.46, "Transformer": 0.47},
        "NVIDIA DeepLearningExamples: ResNet-50 in MXNet, 26 % MFU; BERT-Large in PyTorch, 42 % MFU",
        "NVIDIA Tesla V100 GPU Architecture, table of V100 SXM2",
    ),
    "a100": Card(
        "NVIDIA A100 SXM 80 GB",
        {"bf16": 312e12, "fp16": 312e12, "float32": 19.5e12},
        80 * GIB,
        2039e9,
        300e9,
        200e9,
        {"CNN": 0.55, "Transformer": 0.51},
        "NVIDIA DeepLearningExamples: ResNet-50 in MXNet, 27 % MFU; BERT-Large in PyTorch, 44 % MFU",
        "NVIDIA A100 Tensor Core GPU, data sheet 1758950, without sparsity",
    ),
    "h100": Card(
        "NVIDIA H100 SXM 80 GB",
        {"bf16": 989.4e12, "fp16": 989.4e12, "float32": 66.9e12},
        80 * GIB,
        3350e9,
        450e9,
        400e9,
        {"CNN": 0.47, "Transformer": 0.51},
        "MLPerf Training 3.0: ResNet-50, 17 % MFU if of 35 epochs; for the Transformer the A100's, assumed",
        "NVIDIA H100 Tensor Core GPU Architecture, table of H100 SXM5, without sparsity",
    ),
}
