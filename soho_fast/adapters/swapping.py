"""Puts a class with exact lookups under a module, and takes it away again. Weights, hooks and names stay.

An accelerated class is a subclass, with the same name, of the one it replaces: `_no_split_modules`, wrapping policies
and `repr` see no difference.
"""

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from soho_fast.adapters.kept_codebook import KeptCodebook, Made, is_recorded, nearest_code

_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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


class Accelerated(Swapped, nn.Module):
    """A class that holds a codebook.

    Attributes:
        codebook_at: where the module has its codebook.
        replaces: the methods of `original` that are others here.
        metric: by which its codes are compared, one of `ops.codebook_lookup`.
    """

    codebook_at: ClassVar[str]
    replaces: ClassVar[tuple[str, ...]]
    metric: ClassVar[str] = "euclidean"
    _kept: KeptCodebook

    def begin(self) -> None:
        self._kept = KeptCodebook()

    def end(self) -> None:
        del self._kept

    def forget(self) -> None:
        """Drop what was made of the weights."""
        self._kept.drop()

    def train(self, mode: bool = True) -> Any:
        self.forget()  # some optimisers write past the version counter
        return super().train(mode)

    def nearest_code(self, features_NC: Tensor, codebook_KC: Tensor) -> Tensor:
        """As `KeptCodebook.nearest_code`; nothing is kept while the module trains."""
        if is_recorded(features_NC):
            return nearest_code(features_NC, codebook_KC, self.metric)
        if self.training:
            self.forget()
            return nearest_code(features_NC, codebook_KC, self.metric)
        return self._kept.nearest_code(features_NC, codebook_KC, self.metric)

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


class SummedCodebook(Accelerated):
    """Codes that are kept as sum and number of their members, and made of these when they are asked for.

    The originals keep what they made, after new weights and after `.to()`, too; here it is made anew then.
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


def accelerated_class(name: str, base: type[Accelerated], original: type[nn.Module], home: str) -> type[Accelerated]:
    """The class `name` of module `home`: `base` in front of `original`."""
    return type(name, (base, original), {"__module__": home, "__doc__": base.__doc__, "original": original})


def undo(module: nn.Module) -> None:
    """Give the module the class it had."""
    if isinstance(module, Swapped):
        put(module, type(module).original)


Found = tuple[str, nn.Module, type[Swapped]]


def find(model: nn.Module, accelerated_of: Callable[[type], type[Accelerated] | None]) -> tuple[list[Found], list[str]]:
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
        for kind in _lineage(type(module)):
            if (new := accelerated_of(kind)) is None:
                continue
            if kind is not type(module):
                why = [f"expected a {kind.__name__} itself, got its subclass {type(module).__name__}"]
            else:
                why = new.refusals(module)
                found.append((name, module, new))
            reasons += [told(kind.__name__, name, why)] if why else []
            break
    return found, reasons


def _lineage(kind: type) -> Iterator[type]:
    return (base for base in kind.__mro__ if issubclass(base, nn.Module) and base is not nn.Module)


def told(kind: str, name: str, why: list[str]) -> str:
    return f"the {kind}{f' at {name!r}' if name else ''} cannot be accelerated: {'; '.join(why)}"
