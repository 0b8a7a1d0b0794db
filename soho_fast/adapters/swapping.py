"""Puts a class with exact lookups under a module, and takes it away again. Weights, hooks and names stay.

An accelerated class is a subclass, with the same name, of the one it replaces: `_no_split_modules`, wrapping policies
and `repr` see no difference.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from soho_fast.adapters.kept_codebook import KeptCodebook, Made, is_recorded, nearest_code
from soho_fast.ops.codebook_lookup.reference import Metric

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@contextmanager
def needs(adapter: str, package: str) -> Iterator[None]:
    """Stands around an adapter's imports: where one is missing, the error says which `package` to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        raise ModuleNotFoundError(
            f"{adapter} needs the package {library}: pip install '{package}'", name=error.name
        ) from error


class Swapped:
    """A class that can stand in the place of another; before it among the bases.

    Attributes:
        original: the class that is replaced.
    """

    original: ClassVar[type[nn.Module]]

    def begin(self) -> None:
        """Called when the class has been put under a module."""

    def end(self) -> None:
        """Called before it is taken away."""


class Keeping(Swapped):
    """A module's class that keeps what it prepares of codebooks, and drops it where it trains."""

    _kept: KeptCodebook
    training: bool

    def begin(self) -> None:
        self._kept = KeptCodebook()

    def end(self) -> None:
        del self._kept

    def forget(self) -> None:
        """Drop what was made of the weights."""
        self._kept.drop()

    def train(self, mode: bool = True) -> Any:
        self.forget()  # some optimisers write past the version counter
        return super().train(mode)  # type: ignore[misc]

    def found_nearest(self, features_NC: Tensor, codebook_KC: Tensor, metric: Metric) -> Tensor:
        """As `KeptCodebook.nearest_code`; nothing is kept while the module trains."""
        if is_recorded(features_NC):
            return nearest_code(features_NC, codebook_KC, metric)
        if self.training:
            self.forget()
            return nearest_code(features_NC, codebook_KC, metric)
        return self._kept.nearest_code(features_NC, codebook_KC, metric)


class KeepingLevels(Keeping):
    """A class over levels, of which each holds a codebook."""

    _num_drops: tuple[int, ...]

    def begin(self) -> None:
        super().begin()
        self._num_drops = ()

    def end(self) -> None:
        super().end()
        del self._num_drops

    def looked_up(
        self, features: Tensor, codebooks: Sequence[object], codes: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor] | None:
        """As `KeptCodebook.residual_lookup`; codebooks are the modules that hold the codes."""
        kept = [codebook._kept for codebook in codebooks if isinstance(codebook, Keeping) and not codebook.training]
        if len(kept) < len(codebooks):
            return None
        num_drops = tuple(one.num_drops for one in kept)
        if num_drops != self._num_drops:
            self.forget()
            self._num_drops = num_drops
        return self._kept.residual_lookup(features, codes)


class Accelerated(Keeping, nn.Module):
    """A class that holds a codebook.

    Attributes:
        codebook_at: where the module has its codebook.
        replaces: the methods of `original` that are others here.
        metric: by which its codes are compared, one of `ops.codebook_lookup`.
    """

    codebook_at: ClassVar[str]
    replaces: ClassVar[tuple[str, ...]]
    metric: ClassVar[Metric] = "euclidean"

    def nearest_code(self, features_NC: Tensor, codebook_KC: Tensor) -> Tensor:
        """Index int64 (N,)."""
        return self.found_nearest(features_NC, codebook_KC, self.metric)

    @classmethod
    def refusals(cls, module: nn.Module) -> list[str]:
        """Every reason why the module, of class `original`, cannot have this one."""
        reasons = [
            f"{name}: expected that of its class, got one of the instance's own"
            for name in cls.replaces
            if name in vars(module) and not _is_hooked(module, name)
        ]
        codebook: Any = module
        for part in cls.codebook_at.split("."):
            codebook = getattr(codebook, part, None)
        if not isinstance(codebook, Tensor):
            reasons.append(f"{cls.codebook_at}: expected a tensor (K, C), got {type(codebook).__name__}")
        elif codebook.dtype not in _TYPES:
            expected = ", ".join(str(one).removeprefix("torch.") for one in _TYPES)
            got = str(codebook.dtype).removeprefix("torch.")
            reasons.append(f"{cls.codebook_at}: expected {expected}, got {got}")
        elif codebook.dim() != 2 or codebook.shape[0] < 1:
            reasons.append(f"{cls.codebook_at}: expected shape (K, C) with a code, got {tuple(codebook.shape)}")
        return reasons


class ResidualStack(KeepingLevels, nn.Module):
    """A class whose `encode` subtracts the codes of its levels one after another: in evaluation one op for all levels,
    with the bits of that loop.

    Attributes:
        levels_at: where the stack has its levels. codebook_at: where a level has its `Accelerated`.
        codes_at: where that has the codes.
    """

    levels_at: ClassVar[str] = "layers"
    codebook_at: ClassVar[str] = "codebook"
    codes_at: ClassVar[str] = "embed"

    @classmethod
    def serves(cls, module: nn.Module) -> bool:
        """Whether the levels of the module, of class `original`, subtract the codes as they are."""
        return all(
            type(level).__module__ == cls.original.__module__
            and all(name == cls.codebook_at or isinstance(part, nn.Identity) for name, part in level.named_children())
            for level in getattr(module, cls.levels_at)
        )

    def encoded(self, embeddings: Tensor, num_levels: int) -> Tensor:
        """int64 (L, B, T) of embeddings (B, C, T)."""
        levels = getattr(self, self.levels_at)[:num_levels]
        if (index_LBT := self._at_once(embeddings, levels)) is not None:
            return index_LBT
        found, residual = [], embeddings
        for level in levels:
            found.append(level.encode(residual))
            residual = residual - level.decode(found[-1])
        return torch.stack(found)

    def _at_once(self, embeddings: Tensor, levels: Any) -> Tensor | None:
        if is_recorded(embeddings):
            return None
        codebooks = [getattr(level, self.codebook_at) for level in levels]
        # Where an instance has methods of its own, its class does not say what it does.
        if self.training or any(any(map(callable, vars(part).values())) for part in (*levels, *codebooks)):
            return None
        codes_KC = [getattr(codebook, self.codes_at) for codebook in codebooks]
        found = self.looked_up(embeddings.transpose(1, 2), codebooks, codes_KC)
        return None if found is None else found[0].permute(2, 0, 1).contiguous()


class SummedCodebook(Accelerated):
    """Codes that are kept as sum and number of their features, and made of these when they are asked for.

    The originals keep what they made, after new weights and after `.to()`, too; here it is made again then.
    """

    made_at: ClassVar[str]  # where the original keeps it
    _made: Made

    def begin(self) -> None:
        super().begin()
        self._made = Made()
        setattr(self, self.made_at, None)

    def end(self) -> None:
        super().end()
        del self._made

    def forget(self) -> None:
        super().forget()
        self._made.drop()

    def centroids(self, sum_KC: Tensor, usage_K: Tensor, epsilon: float) -> Tensor:
        """The codes (K, C)."""
        if self.training:  # moshi writes past the version counter then
            return _centroids(sum_KC, usage_K, epsilon)
        return self._made.of(_centroids, sum_KC, usage_K, epsilon)


def _centroids(sum_KC: Tensor, usage_K: Tensor, epsilon: float) -> Tensor:
    return sum_KC / usage_K.clamp(min=epsilon)[:, None]


def _is_own_method(value: object, module: nn.Module, name: str) -> bool:
    return (
        isinstance(value, MethodType)
        and value.__self__ is module
        and value.__func__ is getattr(type(module), name, None)
    )


def _is_hooked(module: nn.Module, name: str) -> bool:
    """Whether an instance's own `forward` leads to that of its class, as accelerate's hooks and their removal do."""
    held = vars(module)
    return name == "forward" and any(_is_own_method(held.get(key), module, name) for key in ("forward", "_old_forward"))


def put(module: nn.Module, new: type[Any]) -> None:
    """Give the module another class; bound methods that hooks hold follow."""
    if isinstance(module, Swapped):
        module.end()
    held = [key for key in ("forward", "_old_forward") if _is_own_method(vars(module).get(key), module, "forward")]
    module.__class__ = new
    for key in held:
        vars(module)[key] = MethodType(new.forward, module)
    if isinstance(module, Swapped):
        module.begin()


def undo(module: nn.Module) -> None:
    """Give the module the class it had."""
    if isinstance(module, Swapped):
        put(module, type(module).original)


def by_original(*classes: type[Keeping]) -> Callable[[type], type[Keeping] | None]:
    """Of an original class the one among these that replaces it."""
    return {one.original: one for one in classes}.get


Found = tuple[str, nn.Module, type[Swapped]]


def find(model: nn.Module, accelerated_of: Callable[[type], type[Keeping] | None]) -> tuple[list[Found], list[str]]:
    """The modules to accelerate, as (name, module, new class), and every reason why one cannot be.

    Args:
        accelerated_of: the accelerated class of an original one.
    """
    found: list[Found] = []
    reasons: list[str] = []
    modules: list[tuple[str, nn.Module]] = list(model.named_modules())
    for name, module in modules:
        if isinstance(module, Swapped):
            continue
        for kind in type(module).__mro__:
            if (new := accelerated_of(kind)) is None:
                continue
            if issubclass(new, ResidualStack):
                found += [(name, module, new)] if kind is type(module) and new.serves(module) else []
                break
            assert issubclass(new, Accelerated)
            if kind is not type(module):
                why = [f"expected a {kind.__name__} itself, got its subclass {type(module).__name__}"]
            else:
                why = new.refusals(module)
                found.append((name, module, new))
            reasons += [told(kind.__name__, name, why)] if why else []
            break
    return found, reasons


def told(kind: str, name: str, why: list[str]) -> str:
    return f"the {kind}{f' at {name!r}' if name else ''} cannot be accelerated: {'; '.join(why)}"
