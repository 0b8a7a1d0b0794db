"""Puts another class under a module, and takes it away again. Weights, hooks and names stay.

Such a class is a subclass, with the same name, of the one it replaces: `_no_split_modules`, wrapping policies and
`repr` see no difference.
"""

from types import MethodType
from typing import Any, ClassVar

from torch import nn


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


def put(module: nn.Module, new: type[Any]) -> None:
    """Give the module another class; the bound methods that accelerate's hooks hold follow."""
    if isinstance(module, Swapped):
        module.end()
    held = [key for key in ("forward", "_old_forward") if _is_own_forward(vars(module).get(key), module)]
    module.__class__ = new
    for key in held:
        vars(module)[key] = MethodType(new.forward, module)
    if isinstance(module, Swapped):
        module.begin()


def undo(module: nn.Module) -> None:
    """Give the module the class it had."""
    if isinstance(module, Swapped):
        put(module, type(module).original)


def _is_own_forward(value: object, module: nn.Module) -> bool:
    return isinstance(value, MethodType) and value.__self__ is module and value.__func__ is type(module).forward
