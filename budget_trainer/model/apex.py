"""NVIDIA apex, where it is asked for: its fused classes, and its LayerNorm in the place of torch's."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import nn

from budget_trainer.core.errors import InputError

_LEAVE = "use layer_norm_type pytorch, or leave it out"


def fused_class(name: str, field: str, instead: str) -> Any:
    """apex's FusedLayerNorm, FusedAdam or FusedLAMB; InputError of the flag `field` where it or its kernels are missing."""
    try:
        if name == "FusedLayerNorm":
            fused = import_module("apex.normalization").FusedLayerNorm
            fused(1)  # loads the CUDA extension
            return fused
        import_module("amp_C")  # the kernels; apex without them fails only when an optimizer is made
        return getattr(import_module("apex.optimizers"), name)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{field}: apex is not installed ({reason}); build NVIDIA's from source (https://github.com/NVIDIA/apex with its "
            f"CUDA extensions; the package named apex on the public index is another one), or {instead}"
        ) from None


def use_apex(model: nn.Module, device: torch.device | str) -> int:
    """Put apex's module in the place of every nn.LayerNorm of `model`; returns how many.

    The parameters stay themselves, under their names: what is saved, the config and the optimizer's groups are those of the
    stock model, and only the kernel differs.

    Raises:
        InputError: `device` is no NVIDIA GPU, apex is not installed, or the model has no LayerNorm, or one without a bias,
            which apex does not compute.
    """
    kind = torch.device(device).type
    if kind != "cuda":
        raise InputError(f"layer_norm_type: apex runs on NVIDIA GPUs, this run is on {kind!r}; {_LEAVE}")
    fused = fused_class("FusedLayerNorm", "layer_norm_type", _LEAVE)
    norms = {name: module for name, module in model.named_modules() if type(module) is nn.LayerNorm}
    if not norms:
        raise InputError(f"layer_norm_type: apex has no LayerNorm to replace in this model; {_LEAVE}")
    for name, norm in norms.items():
        if norm.elementwise_affine and norm.bias is None:
            raise InputError(
                f"layer_norm_type: apex computes LayerNorm with a bias, and {name} has none; give the model one (modernbert: "
                f"model_config {{norm_bias: true}}), or {_LEAVE}"
            )
        module = fused(norm.normalized_shape, eps=norm.eps, elementwise_affine=norm.elementwise_affine)
        for own, parameter in norm.named_parameters(recurse=False):
            setattr(module, own, parameter)
        model.set_submodule(name, module.train(norm.training))
    return len(norms)
