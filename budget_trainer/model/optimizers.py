"""Optimizers by name, with parameter groups by module type.

LAMB is that of You et al. 2020 (arXiv 1904.00962, algorithm 2). Muon trains the hidden matrices and AdamW the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from budget_trainer.core.errors import InputError
from budget_trainer.model.engine_optimizers import (
    MAX_COEFF,
    MIN_COEFF,
    check_engine,
    full_shape,
    fused_optimizer,
    zero_muon,
)


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
        """Take one step; returns the closure's loss."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                group["step"] += 1
                self._update(group, params, [p.grad for p in params])
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor]) -> None:
        for parameter in params:
            state = self.state[parameter]
            for name in ("exp_avg", "exp_avg_sq"):
                if name not in state:
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        first, second = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
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
        # The trust ratios as one vector on the device of their tensors.
        weights = torch.stack(list(torch._foreach_norm(params)))
        updates = torch.stack(list(torch._foreach_norm(direction)))
        ratios = (weights / updates).clamp(group["min_coeff"], group["max_coeff"])
        ratios = torch.where((weights > 0) & (updates > 0), ratios, torch.ones_like(ratios))
        torch._foreach_mul_(direction, list(ratios.unbind()))
        torch._foreach_add_(params, direction, alpha=-group["lr"])


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


OPTIMIZERS = ("adam", "adamw", "adafactor", "lamb", "muon")
_LAMB_ONLY = ("bias_correction", "max_coeff", "min_coeff")


@dataclass(frozen=True)
class OptimizerOptions:
    """What `build_optimizer` makes, checked.

    Args:
        name: one of OPTIMIZERS. adafactor takes the given learning rate, without its own scaling.
        learning_rate: the peak, in units of the update.
        weight_decay: for matrices and embeddings; biases, norms and other vectors have none.
        muon_learning_rate, muon_weight_decay: None takes learning_rate and weight_decay: updates have the same size.
        embedding_learning_rate: of embeddings and the output projection; None takes learning_rate.
        bias_correction, max_coeff, min_coeff: of lamb only; None takes the original project's False, 0.3 and 0.01.
        optimizer_impl: auto is torch's fused kernel, and DeepSpeed's Muon under ZeRO.
        zero_stage: DeepSpeed's ZeRO stage, or None.

    Raises:
        InputError: an unknown name, an option that it does not have, or a number out of range.
    """

    name: str
    learning_rate: float
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-6
    muon_learning_rate: float | None = None
    muon_momentum: float = 0.95
    muon_weight_decay: float | None = None
    embedding_learning_rate: float | None = None
    bias_correction: bool | None = None
    max_coeff: float | None = None
    min_coeff: float | None = None
    optimizer_impl: str = "auto"
    zero_stage: int | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise InputError(f"optimizer_type: {self.name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")
        for field, value in asdict(self).items():
            if value is None or isinstance(value, str):
                continue
            if field in _LAMB_ONLY and self.name != "lamb":
                raise InputError(f"{field}: {value} belongs to optimizer_type lamb, not {self.name}; leave it out")
            if field in ("adam_beta1", "adam_beta2", "muon_momentum") and not 0 <= value < 1:
                raise InputError(f"{field}: {value} is not in [0, 1); give a share such as 0.9")
            if not value >= 0:  # also refuses nan
                raise InputError(f"{field}: {value} is below 0; give 0 or more")
        low, high = self.lamb["min_coeff"], self.lamb["max_coeff"]
        if low > high:
            raise InputError(f"min_coeff: {low} is above max_coeff {high}; lower it or raise max_coeff")

    @property
    def lamb(self) -> dict[str, Any]:
        """The options that only lamb has."""
        return {
            "bias_correction": bool(self.bias_correction),
            "max_coeff": MAX_COEFF if self.max_coeff is None else self.max_coeff,
            "min_coeff": MIN_COEFF if self.min_coeff is None else self.min_coeff,
        }

    def check_engine(self, device: str, **engine: Any) -> None:
        """Refuse what this device or engine cannot run; see `engine_optimizers.check_engine`."""
        lamb = self.lamb if self.name == "lamb" else None
        check_engine(self.name, self.optimizer_impl, device=device, zero_stage=self.zero_stage, lamb=lamb, **engine)


class _MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and fused AdamW behind one interface; every group says which by its `use_muon`.

    The groups and the state belong to this object; both inner optimizers borrow them for the length of a step. So
    loading a state, or a group changed by a scheduler, needs no copying back and forth.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self._inner: list[tuple[bool, torch.optim.Optimizer]] = []
        # Moonshot's scaling gives an update the size AdamW's has, so one learning rate serves both (arXiv 2502.16982).
        if muon := [group for group in groups if group["use_muon"]]:
            self._inner.append((True, torch.optim.Muon(muon, adjust_lr_fn="match_rms_adamw")))
        if adamw := [group for group in groups if not group["use_muon"]]:
            self._inner.append((False, torch.optim.AdamW(adamw, fused=True)))
        super().__init__(groups, {})  # the same dicts, which now hold every option

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_inner": self._inner}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """As Lamb's."""
        loss = _evaluate(closure)
        for use_muon, optimizer in self._inner:
            optimizer.param_groups = [group for group in self.param_groups if group["use_muon"] == use_muon]
            optimizer.state = self.state
            optimizer.step()
        return loss


def build_optimizer(name: str | OptimizerOptions, model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    """Return the optimizer of a model, whose parameters are already on their device.

    Args:
        name: the optimizer, with `options` as OptimizerOptions takes them; or these themselves.
        model: every trainable parameter goes into exactly one group, a tied one once.

    Raises:
        InputError: as OptimizerOptions does, and for what this device or this engine cannot run.
    """
    o = OptimizerOptions(name, **options) if isinstance(name, str) else name
    name = o.name
    o.check_engine(next((parameter.device.type for parameter in model.parameters()), "cpu"))
    rate, groups = o.learning_rate, _parameter_groups(model, o)
    adam: dict[str, Any] = {"betas": (o.adam_beta1, o.adam_beta2), "eps": o.adam_epsilon}
    if name == "lamb":
        adam |= o.lamb
    if o.optimizer_impl in ("apex", "deepspeed"):
        return fused_optimizer(o.optimizer_impl, name, groups, **adam)
    if name == "lamb":
        return Lamb(groups, **adam)
    if name == "adam":  # with weight_decay as a term of the gradient; adamw decouples it
        return torch.optim.Adam(groups, fused=True, **adam)
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=True, **adam)
    if name == "adafactor":
        from transformers.optimization import Adafactor  # the only one that needs more than torch

        return Adafactor(groups, lr=rate, scale_parameter=False, relative_step=False)
    for group in groups:
        group["use_muon"] = group["name"] == "hidden"
        if group["use_muon"]:
            group["momentum"] = o.muon_momentum
            group["lr"] = rate if o.muon_learning_rate is None else o.muon_learning_rate
            group["weight_decay"] = o.weight_decay if o.muon_weight_decay is None else o.muon_weight_decay
        else:
            group.update(adam)
    return zero_muon(groups) if o.zero_stage else _MuonWithAdamW(groups)


def _parameter_groups(model: nn.Module, o: OptimizerOptions) -> list[dict[str, Any]]:
    """The non-empty groups of trainable parameters, as dicts with name, params, lr and weight_decay.

    `no_decay` holds biases, the weights of norms and all other vectors; `embeddings` the embedding tables and the
    output projection (often one tensor); `hidden` the other matrices; `decay` the rest. Without Muon `hidden` is part
    of `decay`, and so are `embeddings` unless they learn at another rate.
    """
    embedding_rate = o.learning_rate if o.embedding_learning_rate is None else o.embedding_learning_rate
    merged = {} if o.name == "muon" else {"hidden": "decay"}
    if embedding_rate == o.learning_rate:
        merged["embeddings"] = "decay"
    params: dict[str, list[nn.Parameter]] = {"decay": [], "hidden": [], "embeddings": [], "no_decay": []}
    for kind, parameter in _classified(model):
        params[merged.get(kind, kind)].append(parameter)
    return [
        {
            "name": kind,
            "params": members,
            "lr": embedding_rate if kind == "embeddings" else o.learning_rate,
            "weight_decay": 0.0 if kind == "no_decay" else o.weight_decay,
        }
        for kind, members in params.items()
        if members
    ]


def _classified(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each trainable parameter once with its kind, in the order of `model.parameters()`."""
    tables: list[Any] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    find_decoder: Any = getattr(model, "get_output_embeddings", lambda: None)
    kinds = {id(table.weight): "embeddings" for table in [*tables, find_decoder()] if table is not None}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if path.endswith(("seq_relationship", "detection.score")) and name == "weight":
                kinds[id(parameter)] = "decay"  # an output projection, no hidden matrix
            elif len(full_shape(parameter)) < 2 or name.endswith("bias") or type(module).__name__.endswith("Norm"):
                kinds.setdefault(id(parameter), "no_decay")
            elif len(full_shape(parameter)) == 2:
                kinds.setdefault(id(parameter), "hidden")
    for parameter in model.parameters():
        if parameter.requires_grad:
            yield kinds.get(id(parameter), "decay"), parameter
