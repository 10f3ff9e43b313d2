"""Which module is being called, by hooks on all modules."""

from __future__ import annotations

import threading
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

__all__ = ["LayerStack"]


class LayerStack:
    """The modules whose `forward` is being run in this thread, while in its ``with`` block.

    Parameters
    ----------
    root : Module, optional
        Names are relative to it; to the outermost module that is called if absent.
    """

    def __init__(self, root: nn.Module | None = None) -> None:
        self._fixed = root is not None
        self._names = {} if root is None else _names(root)
        self._stack: list[nn.Module] = []
        self._thread = threading.get_ident()
        self._hooks: list[Any] = []

    def __enter__(self) -> LayerStack:
        self._hooks = [
            register_module_forward_pre_hook(self._before),
            register_module_forward_hook(self._after, always_call=True),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._stack.clear()

    @property
    def current(self) -> nn.Module | None:
        """The innermost module."""
        return self._stack[-1] if self._stack else None

    def name(self, module: nn.Module | None) -> str | None:
        """The name of a module; None if it is not in the tree."""
        return None if module is None else self._names.get(module)

    def _before(self, module: nn.Module, arguments: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        if not self._stack and not self._fixed:
            self._names = _names(module)
        self._stack.append(module)

    def _after(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if threading.get_ident() == self._thread and module in self._stack:
            while self._stack.pop() is not module:
                pass


def _names(root: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in root.named_modules()}
