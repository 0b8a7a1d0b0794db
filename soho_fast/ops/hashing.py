"""A number for each number, by which things are drawn alike on every device, rank and thread."""

from torch import Tensor


def mix64(x: Tensor) -> Tensor:
    """A bijective hash of int64 (the finaliser of SplitMix64): the same bits on every device and rank."""
    # 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB as int64, whose products wrap; the last step multiplies by none.
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ shifted(x, shift)) * factor
    return x


def shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits without its sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
