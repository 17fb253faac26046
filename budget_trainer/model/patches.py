"""Changes to objects of other libraries that their own interfaces do not offer, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


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
