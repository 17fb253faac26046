"""NVIDIA apex's FusedLayerNorm in the place of every LayerNorm, on the same parameters under the same names.

What is saved, the config and the optimizer's groups are those of the stock model: only the kernel differs. apex is
NVIDIA's, built from source (https://github.com/NVIDIA/apex); the package of that name on the public index is another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from budget_trainer.core.errors import InputError

_LEAVE = "use layer_norm_type pytorch, or leave it out"


def check_apex(device: torch.device | str) -> None:
    """Refuse `layer_norm_type apex` where it cannot run.

    Raises:
        InputError: `device` is no NVIDIA GPU, or NVIDIA's apex or its CUDA extension is not installed.
    """
    kind = torch.device(device).type
    if kind != "cuda":
        raise InputError(f"layer_norm_type: apex runs on NVIDIA GPUs, this run is on {kind!r}; {_LEAVE}")
    try:
        _fused_class()(1)  # loads the CUDA extension
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"layer_norm_type: apex is not installed ({reason}); it is NVIDIA's, from source (the package named apex on "
            f"the public index is another one), or {_LEAVE}"
        ) from None


def use_apex(model: nn.Module) -> int:
    """Put apex's module in the place of every nn.LayerNorm of `model`; returns how many.

    Raises:
        InputError: the model has no LayerNorm, or one without a bias, which apex does not compute.
    """
    fused_class = _fused_class()
    norms = {name: module for name, module in model.named_modules() if type(module) is nn.LayerNorm}
    if not norms:
        raise InputError(f"layer_norm_type: apex has no LayerNorm to replace in this model; {_LEAVE}")
    for name, norm in norms.items():
        if norm.elementwise_affine and norm.bias is None:
            raise InputError(
                f"layer_norm_type: apex computes LayerNorm with a bias, and {name} has none; give the model one (modernbert: "
                f"model_config {{norm_bias: true}}), or {_LEAVE}"
            )
        model.set_submodule(name, _fused(fused_class, norm))
    return len(norms)


def _fused(fused_class: Any, norm: nn.LayerNorm) -> nn.Module:
    """Return apex's module with the parameters of `norm` themselves, not copies."""
    fused: nn.Module = fused_class(norm.normalized_shape, eps=norm.eps, elementwise_affine=norm.elementwise_affine)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(fused, name, parameter)
    return fused.train(norm.training)


def _fused_class() -> Any:
    from apex.normalization import FusedLayerNorm  # type: ignore[import-not-found]  # only where it is asked for

    return FusedLayerNorm
