"""The rows to be clustered: a tensor, an array, or batches that are larger than memory together.

Letters: N rows, M rows of a batch, C channels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from numbers import Integral
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from soho_fast.ops.hashing import mix64, shifted

if TYPE_CHECKING:
    import numpy as np

    Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.float64]]
    Centers = np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.float64]]
    Labels = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

FLOAT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_EXACT_IN_FLOAT32 = (torch.bool, torch.uint8, torch.int8, torch.int16)
_SAMPLED = 4096  # rows of which an offset is the median
_CHECKED = 1 << 20  # elements looked at together


class Batch(NamedTuple):
    """features (M, C), their weights float32 (M,) or None, and the position of the first among this process's rows."""

    features: Tensor
    weight: Tensor | None
    first: int


def as_rows(name: str, value: Any) -> tuple[Tensor, bool]:
    """(N, C) float32, bfloat16 or float16 of a tensor or of anything that numpy makes an array of, and whether results
    go back as arrays. Other numbers become float32 where that is exact for all of their type, else float64: `centred`
    makes float32 of those.

    Raises:
        TypeError: a sparse matrix, or what holds no numbers. ValueError: other than 2 dimensions, complex numbers,
            no channels, NaN or infinity.
    """
    tensor, is_array = _as_tensor(name, value)
    if tensor.dim() != 2:
        raise ValueError(
            f"{name}: expected 2 dimensions (rows, features), got shape {tuple(tensor.shape)}. Reshape your data with "
            f"X.reshape(-1, 1) if it has one feature, with X.reshape(1, -1) if it is one row"
        )
    if tensor.shape[1] < 1:
        raise ValueError(
            f"{name}: Found array with 0 feature(s) (shape={tuple(tensor.shape)}) while a minimum of 1 is required."
        )
    _refuse_not_finite(name, tensor)
    return tensor, is_array


def as_weights(value: Any, num_rows: int, device: torch.device) -> Tensor | None:
    """float32 (N,), None where no weights came.

    Raises:
        TypeError, ValueError: no numbers, another shape, a weight that is negative, NaN or infinite.
    """
    if value is None:
        return None
    tensor = _as_tensor("sample_weight", value)[0]
    if tensor.dim() == 0:
        tensor = tensor.expand(num_rows)
    if tuple(tensor.shape) != (num_rows,):
        raise ValueError(f"sample_weight: expected shape ({num_rows},), one for each row, got {tuple(tensor.shape)}")
    tensor = tensor.to(device, torch.float32)
    _refuse_not_finite("sample_weight", tensor)
    if tensor.numel() and bool(tensor.min() < 0):
        raise ValueError(f"sample_weight: expected no weight below zero, got {float(tensor.min())}")
    return tensor


def names_of(value: Any) -> list[str]:
    """Of a data frame's columns; none where some are no strings, as in scikit-learn."""
    names = list(getattr(value, "columns", ()))
    return names if all(isinstance(name, str) for name in names) else []


def check_names(name: str, names: Sequence[str], earlier: Sequence[str]) -> None:
    """ValueError unless columns have the names that came earlier, where both have names."""
    for column, (one, other) in enumerate(zip(names, earlier, strict=False)):
        if one != other:
            raise ValueError(
                f"{name}: The feature names should match those that were passed during fit, but column {column} is "
                f"{one!r} and was {other!r}"
            )


def give_back(result: Tensor, is_array: bool) -> Any:
    """`result` in the kind in which its rows came."""
    return result.cpu().numpy() if is_array else result


def are_batches(value: Any) -> bool:
    """Whether `value` gives batches rather than being rows itself: a function, or what can be iterated and is no list,
    no tensor and no array."""
    if isinstance(value, (Tensor, list, tuple, str, dict)) or hasattr(value, "tocsr"):
        return False
    if any(hasattr(value, name) for name in ("__array__", "__array_interface__", "__array_function__")):
        return False
    return callable(value) or hasattr(value, "__iter__")


def array_of(name: str, value: Any) -> np.ndarray:
    """What numpy makes of it; TypeError without numpy."""
    try:
        import numpy as np
    except ImportError as error:
        raise TypeError(
            f"{name}: expected a torch tensor (numpy, which would read a {type(value).__name__}, is not installed)"
        ) from error
    return np.asarray(value)


def _as_tensor(name: str, value: Any) -> tuple[Tensor, bool]:
    if hasattr(value, "tocsr") or (isinstance(value, Tensor) and value.layout != torch.strided):
        raise TypeError(f"{name}: expected dense rows, got a sparse {type(value).__name__}; pass its dense form")
    if isinstance(value, Tensor):
        if value.is_complex():
            raise ValueError(f"{name}: Complex data not supported, got {value.dtype}")
        value = value.detach()
        if value.dtype in FLOAT_TYPES:
            return value, False
        return value.to(torch.float32 if value.dtype in _EXACT_IN_FLOAT32 else torch.float64), False
    array = array_of(name, value)
    import numpy as np

    if array.dtype.kind == "c":
        raise ValueError(f"{name}: Complex data not supported, got {array.dtype}")
    if array.dtype.kind not in "biuf":
        try:
            array = array.astype(np.float64)  # objects and text that hold numbers
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{name}: expected numbers, got a {type(value).__name__}: {error}") from error
    # The smallest type that holds these numbers and float32's: float64 where float32 would round.
    exact = array.dtype if array.dtype == np.float16 else np.result_type(array.dtype, np.float32)
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        array = np.asarray(array, np.float64 if exact.itemsize > 8 else exact, order="C")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a read-only array, which is only read
        return torch.from_numpy(array), True


def _refuse_not_finite(name: str, values: Tensor) -> None:
    for part in values.split(max(1, _CHECKED // max(1, values[0].numel()))) if values.numel() else ():
        # A NaN is both.
        low, high = torch.aminmax(part)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            bad = int((~values.reshape(len(values), -1).isfinite().all(-1)).nonzero()[0])
            kind = "NaN" if values[bad].isnan().any() else "infinity"
            raise ValueError(f"{name}: expected finite values in float32, got {kind} in row {bad}")


def offset_of(rows_NC: Tensor) -> Tensor | None:
    """float64 (C,): a place among the rows, the median of some; None where rows are no float64, or none are there."""
    if rows_NC.dtype != torch.float64 or not len(rows_NC):
        return None
    return rows_NC[:: math.ceil(len(rows_NC) / _SAMPLED)].median(0).values.cpu()


def centred(name: str, rows_NC: Tensor, offset_C: Tensor | None, unit: bool = False) -> Tensor:
    """(N, C): what float64 leaves of rows after an offset, rounded to float32; without an offset the rows, float64 ones
    as float32. With `unit` the rows scaled to length 1 in float64, rounded to float32.

    Raises:
        ValueError: float32 does not hold it, or not its squared distances; with `unit`, a row of zeros.
    """
    if offset_C is None and not unit and rows_NC.dtype in FLOAT_TYPES:
        left_NC = rows_NC
    else:
        left_NC = torch.empty(rows_NC.shape, dtype=torch.float32, device=rows_NC.device)
        offset_C = rows_NC.new_zeros(1) if offset_C is None else offset_C.to(rows_NC.device)
        step = max(1, _CHECKED // rows_NC.shape[1])
        for part, rows in zip(left_NC.split(step), rows_NC.split(step), strict=True):
            part.copy_(_unit(name, rows.double()) if unit else rows.double() - offset_C)
        _refuse_not_finite(name, left_NC)
    refuse_too_large(name, left_NC)
    return left_NC


def _unit(name: str, rows_MC: Tensor) -> Tensor:
    rows_MC = rows_MC / rows_MC.abs().amax(1, keepdim=True)  # so that no square overflows or vanishes
    if bool(rows_MC.isnan().any()):
        raise ValueError(f"{name}: expected no row of zeros, which has no direction to compare by metric='cosine'")
    return rows_MC / rows_MC.norm(dim=1, keepdim=True)


def refuse_too_large(name: str, features_NC: Tensor) -> None:
    """Squared distances, and with them inertias, would be infinite in float32."""
    # |x - d|^2 is at most C (2 most)^2.
    most = math.sqrt(torch.finfo(torch.float32).max / (4 * features_NC.shape[1]))
    low, high = torch.aminmax(features_NC) if features_NC.numel() else (0.0, 0.0)
    if max(-float(low), float(high)) > most:
        raise ValueError(
            f"{name}: expected magnitudes of at most {most:.3g}, whose squared distances float32 can hold, got "
            f"{max(-float(low), float(high)):.3g}; scale the rows"
        )


class Rows:
    """The rows of this process, to be gone through again and again.

    Attributes:
        num_rows, num_channels, device; is_array: the kind in which results go back; has_weight: whether a row has any.
        memory: all of them, where they are in memory. names: of their columns, where they are a data frame.
        offset: float64 (C,), what is subtracted from each row; None: nothing.
        unit: whether rows are scaled to length 1.
    """

    num_rows: int
    num_channels: int
    device: torch.device
    is_array: bool
    has_weight: bool
    memory: Batch | None = None
    names: Sequence[str] = ()
    offset: Tensor | None = None
    unit: bool = False
    num_batches = 1

    def centre(self, offset_C: Tensor | None) -> None:
        """From now on the rows less this offset, as float32."""
        raise NotImplementedError

    def batches(self) -> Iterator[Batch]:
        """None of them without rows."""
        if self.memory is not None and self.num_rows:
            yield self.memory


class MemoryRows(Rows):
    """Rows in memory: one batch."""

    def __init__(self, value: Any, sample_weight: Any = None, unit: bool = False) -> None:
        features_NC, self.is_array = as_rows("X", value)
        self.unit, self.names = unit, names_of(value)
        self.offset = None if unit else offset_of(features_NC)
        self.memory = Batch(features_NC, as_weights(sample_weight, len(features_NC), features_NC.device), 0)
        self.num_rows, self.num_channels = features_NC.shape
        self.device = features_NC.device
        self.has_weight = _has_weight(features_NC, self.memory.weight)

    def centre(self, offset_C: Tensor | None) -> None:
        assert self.memory is not None
        self.offset = offset_C
        self.memory = self.memory._replace(features=centred("X", self.memory.features, offset_C, self.unit))


class BatchedRows(Rows):
    """Rows of batches that are made in each pass and forgotten after use; all checks are made in each pass."""

    def __init__(self, value: Any, sample_weight: Any = None, unit: bool = False) -> None:
        if sample_weight is not None:
            raise ValueError("sample_weight: with batches, weights come as pairs (rows, weights) from the batches")
        if isinstance(value, Iterator):
            raise ValueError(
                f"X: expected batches that can be gone through more than once, got a {type(value).__name__}, which "
                "ends after one pass; pass a function that makes it"
            )
        self._value, self.unit = value, unit
        self._marks: list[float] = []  # of each batch, what tells its first row from others
        self.num_rows, self.num_channels, self.num_batches, self.has_weight = 0, -1, 0, False
        for mark, (features, weight, _) in self._read():
            self._marks.append(mark)
            self.num_batches += len(features) > 0
            self.num_channels, self.device = features.shape[1], features.device
            self.num_rows += len(features)
            self.has_weight |= _has_weight(features, weight)
        if self.num_channels < 0:
            raise ValueError("X: expected at least one batch, got none")

    def centre(self, offset_C: Tensor | None) -> None:
        self.offset = offset_C

    def batches(self) -> Iterator[Batch]:
        seen = 0
        for number, (mark, batch) in enumerate(self._read()):
            if number < len(self._marks) and mark != self._marks[number]:
                raise ValueError(
                    "X: expected the same rows in the same order in each pass over the batches (a loader that does not "
                    f"shuffle), but batch {number} begins with another row"
                )
            seen += len(batch.features)
            if len(batch.features):
                yield batch
        if seen != self.num_rows:
            raise ValueError(f"X: expected the same {self.num_rows} rows in each pass over the batches, got {seen}")

    def _read(self) -> Iterator[tuple[float, Batch]]:
        """Each batch, and what tells its first row from others."""
        first = 0
        for number, item in enumerate(each_batch(self._value)):
            rows, weight = split(item)
            features, self.is_array = as_rows(f"batch {number}", rows)
            # Of the first rows alone: each pass must subtract the same.
            if self.offset is None and not first and not self.unit:
                self.offset = offset_of(features)
            if self.num_channels not in (-1, features.shape[1]):
                raise ValueError(f"batch {number}: expected {self.num_channels} features, got {features.shape[1]}")
            check_names(f"batch {number}", names_of(rows), self.names)
            self.names = self.names or names_of(rows)
            left = centred(f"batch {number}", features, self.offset, self.unit)
            yield _mark(features), Batch(left, as_weights(weight, len(features), features.device), first)
            first += len(features)


def _mark(features_MC: Tensor) -> float:
    # A sum of partial sums, which also depends on the channels' order.
    return float(features_MC[0].double().cumsum(0).sum()) if len(features_MC) else 0.0


def _has_weight(features: Tensor, weight: Tensor | None) -> bool:
    return len(features) > 0 and (weight is None or bool((weight > 0).any()))


def each_batch(value: Any) -> Any:
    """One pass over what `are_batches`."""
    return value() if callable(value) and not hasattr(value, "__iter__") else value


def split(item: Any) -> tuple[Any, Any]:
    """Rows and weights of what a loader gives: rows, (rows,) or (rows, weights)."""
    are_arrays = isinstance(item, (list, tuple)) and all(hasattr(part, "ndim") for part in item)
    # Two vectors are no rows and weights: they are a batch of two rows.
    if are_arrays and 1 <= len(item) <= 2 and item[0].ndim == 2:
        return item[0], item[1] if len(item) == 2 else None
    return item, None


def rows_of(value: Any, sample_weight: Any = None, unit: bool = False) -> Rows:
    """What `fit` is given."""
    return (BatchedRows if are_batches(value) else MemoryRows)(value, sample_weight, unit)


def seed_of(random_state: Any) -> int | None:
    """A seed of an int, a torch.Generator or a numpy generator; None where chance decides.

    Raises:
        TypeError: anything else.
    """
    if random_state is None:
        return None
    if isinstance(random_state, torch.Generator):
        return int(torch.randint(2**62, (), generator=random_state, device=random_state.device))
    if hasattr(random_state, "integers"):
        return int(random_state.integers(2**62))
    if hasattr(random_state, "random_sample"):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, Integral):  # numpy's integers too
        return int(random_state)
    expected = "None, an int, a torch.Generator or a numpy generator"
    raise TypeError(f"random_state: expected {expected}, got {type(random_state).__name__}")


def uniform(seed: int, draw: int, position_M: Tensor) -> Tensor:
    """A number in (0, 1) for each position, float64: splitmix64 of seed, draw and position."""
    start = Random(f"{seed} {draw}").getrandbits(63)
    z = mix64(position_M * -7046029254386353131 + start)  # 0x9E3779B97F4A7C15; int64 wraps
    # The last of 2^53 numbers, which the sum rounds up to 1.
    return ((shifted(z, 11).double() + 0.5) * 2.0**-53).clamp_(max=1.0 - 2.0**-53)
