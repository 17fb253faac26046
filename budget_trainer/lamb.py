"""LAMB in plain PyTorch: layer-wise adaptive rates for large batches (You et al. 2020, arXiv 1904.00962, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAX_COEFF, MIN_COEFF = 0.3, 0.01  # of the original project (Izsak et al. 2021)


class Lamb(torch.optim.Optimizer):
    """Adam's direction r = m / (sqrt(v) + eps) + weight_decay * x, scaled per tensor by its trust ratio ||x|| / ||r||.

    The ratio is clamped to [min_coeff, max_coeff], as in the original project's FusedLamb; a tensor whose weights or
    whose direction are all zero has the ratio 1, unclamped. `bias_correction` divides m and v by 1 - beta^t before the
    ratio is taken, as the paper does. Nothing waits for the device: the ratios stay there.

    Args:
        params: tensors or groups; all tensors of one group are on one device.
        lr: in units of the tensor's norm per step.
        betas: decay of m and of v.
        max_coeff, min_coeff: bounds of the trust ratio; inf and 0 leave it as in the paper.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = False,
        max_coeff: float = MAX_COEFF,
        min_coeff: float = MIN_COEFF,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        defaults |= {"bias_correction": bias_correction, "max_coeff": max_coeff, "min_coeff": min_coeff}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                group["step"] += 1
                self._update(group, params, [p.grad for p in params])
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        first, second = self._moments(params)
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        scale = torch._foreach_sqrt(second)
        if group["bias_correction"]:
            torch._foreach_div_(scale, (1 - beta2 ** group["step"]) ** 0.5)
        torch._foreach_add_(scale, group["eps"])
        direction = torch._foreach_div(first, scale)
        if group["bias_correction"]:
            torch._foreach_div_(direction, 1 - beta1 ** group["step"])
        if group["weight_decay"] != 0:
            torch._foreach_add_(direction, params, alpha=group["weight_decay"])
        ratios = trust_ratios(params, list(direction), group["min_coeff"], group["max_coeff"])
        torch._foreach_mul_(direction, list(ratios.unbind()))
        torch._foreach_add_(params, direction, alpha=-group["lr"])

    def _moments(self, params: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for parameter in params:
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return [self.state[p]["exp_avg"] for p in params], [self.state[p]["exp_avg_sq"] for p in params]


def trust_ratios(params: list[Tensor], direction: list[Tensor], min_coeff: float, max_coeff: float) -> Tensor:
    """Return ||x|| / ||r|| for each pair of tensors, clamped, as one vector on their device; 1 where a norm is zero."""
    weights = torch.stack(list(torch._foreach_norm(params)))
    updates = torch.stack(list(torch._foreach_norm(direction)))
    ratios = (weights / updates).clamp(min_coeff, max_coeff)
    return torch.where((weights > 0) & (updates > 0), ratios, torch.ones_like(ratios))
