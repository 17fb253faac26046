"""Changes to objects of other libraries that their own interfaces do not offer, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


def with_mixin(mixin: Any, cls: Any, at: Any = None) -> Any:
    """The subclass of the library's class `cls` whose methods of `mixin` come first, under the same name and module.

    The name becomes `architectures` in config.json, and the library finds the module's source by `__module__`. `at` becomes
    a class attribute of that name, where it is given.
    """
    return _subclass(mixin, cls, at)


@cache  # one class for all layers of a kind
def _subclass(mixin: Any, cls: Any, at: Any) -> Any:
    names = {"__module__": cls.__module__, "__doc__": cls.__doc__, **({} if at is None else {"at": at})}
    return type(cls.__name__, (mixin, cls), names)


def change_class(module: torch.nn.Module, cls: Any) -> None:
    """Give a module of the library the methods of a subclass of its own class.

    The library offers no other way: megatron-bert does not dispatch its attention through AttentionInterface, and no layer
    takes a forward from outside. Parameters, buffers, hooks and state stay as they are: nothing is built twice or copied.
    """
    module.__class__ = cls


@contextmanager
def sharded_by_layer(plugin: Any, model: Any) -> Iterator[None]:
    """While Accelerate prepares it, let FSDP shard a model by encoder layer and leave all the rest to the root.

    Embeddings and head share tensors in most types (the word embeddings, a bias), and FSDP2 refuses a tensor in two of its
    groups: a model's own list (`_no_split_modules`) would put the embeddings apart, Accelerate the output projection, which it
    finds by `get_input_embeddings` and `get_output_embeddings` and has no option to leave alone. Classes that the launch
    configuration names are kept.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        lists = (module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module))
        plugin.transformer_cls_names_to_wrap = sorted({type(layer).__name__ for layer in next(lists, ())})
    names = ("get_input_embeddings", "get_output_embeddings")
    for name in names:
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)
