"""Introspection of the compiled soho_fast kernels, and small lookups by them (csrc/torch/module.cpp)."""

from typing import NotRequired, TypedDict, type_check_only

from torch import Tensor

@type_check_only
class BuildInfo(TypedDict):
    compiler: str
    architecture: str
    stable_abi: str
    cuda_architectures: NotRequired[str]
    cpu_levels_built: list[str]
    cpu_levels_available: list[str]
    cpu_level: str

@type_check_only
class LookupTotals(TypedDict):
    rows: int
    pruning: int
    compared: int
    left: int

def build_info() -> BuildInfo: ...
def lookup_level(num_codes: int, num_channels: int) -> str: ...
def lookup_totals() -> LookupTotals: ...
def set_cpu_level(level: str) -> None: ...
def small_lookup(
    features: object, codebook: object, packed: object, metric: int, topk: int, return_distance: bool
) -> Tensor | tuple[Tensor, Tensor] | None: ...
