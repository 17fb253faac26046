"""Changes to objects of other libraries that their own interfaces do not offer, each with its reason.

On a CPU: dropout from few random bits.

PyTorch draws 24 bits or more for each element on one core: a quarter of the step of a BERT of 4 layers 256 wide. Here 64 bits
decide four elements, from torch's generator: a resumed run goes on bit for bit. The scale is that of the rounded rate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LEVELS = 2**16


@cache  # one class for all layers of a kind
def with_mixin(mixin: Any, cls: Any) -> Any:
    """The subclass of the library's class `cls` whose methods of `mixin` come first, under the same name and module.

    The name becomes `architectures` in config.json, and the library finds the module's source by `__module__`. Made the
    `__class__` of a module of `cls`, it changes only methods: parameters, buffers, hooks and state stay as they are. The
    library offers no other way: megatron-bert does not dispatch its attention through AttentionInterface, and no layer takes
    a forward from outside.
    """
    return type(cls.__name__, (mixin, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


@contextmanager
def sharded_by_layer(plugin: Any, model: Any) -> Iterator[None]:
    """While Accelerate prepares it, let FSDP shard a model by encoder layer and leave all the rest to the root.

    Embeddings and head share tensors in most types, and FSDP2 refuses a tensor in two of its groups: `_no_split_modules` would
    put the embeddings apart, Accelerate the output projection, which it finds by these two methods and has no option to leave
    alone. Classes that the launch configuration names are kept.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module))
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in next(lists, ())})
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """As F.dropout, which it is on other devices, inside of torch.compile (with its own generator), and for `p` near 0 or 1."""
    dropped = round(p * _LEVELS)
    if not training or x.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < dropped < _LEVELS:
        return F.dropout(x, p, training)
    count = x.numel()
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)  # type: ignore[arg-type]
    keep = words.view(torch.int16)[:count].view(x.shape) >= dropped - _LEVELS // 2
    return x * keep.to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class _FewBitDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training)


def use_few_bit_dropout(model: nn.Module) -> None:
    """Give every nn.Dropout of a model the faster forward."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = _FewBitDropout
