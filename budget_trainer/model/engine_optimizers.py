"""What apex and DeepSpeed bring: optimizers, apex's LayerNorm, and which optimizer runs where, refused before training.

Both packages are imported only where they are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module, metadata
from typing import Any

import torch
from torch import nn

from budget_trainer.core.errors import InputError

IMPLEMENTATIONS = ("auto", "torch", "apex", "deepspeed")
MAX_COEFF, MIN_COEFF = 0.3, 0.01  # of LAMB's trust ratio, in the original project (Izsak et al. 2021)
_KERNELS = {"apex": ("adam", "adamw", "lamb"), "deepspeed": ("lamb",)}
_TORCH = "use optimizer_impl auto"
_LEAVE_NORM = "use layer_norm_type pytorch, or leave it out"
# The first whose Muon takes the steps of one process. With 4 micro-batches on 2 processes 0.19.7 ended 6 % off under ZeRO-2 and
# failed under ZeRO-3, where it orthogonalizes each micro-batch (DeepSpeed's issue 8443).
_LEAST_DEEPSPEED = "0.19.8"
_INSTALL = f"pip install 'deepspeed>={_LEAST_DEEPSPEED}'"
_FLAT = "ZeRO cuts the parameters into flat partitions"
_WHOLE = {"lamb": f"needs the norm of whole tensors, and {_FLAT}", "adafactor": f"factors whole matrices, and {_FLAT}"}


def check_engine(
    name: str,
    impl: str,
    *,
    device: str,
    zero_stage: int | None = None,
    fsdp: bool = False,
    max_grad_norm: float = 0.0,
    lamb: Mapping[str, Any] | None = None,
) -> None:
    """Refuse an optimizer or an implementation that cannot run on this device or under this engine, or not as ours does.

    Args:
        name, impl: `optimizer_type` and `optimizer_impl`.
        device: the type of the device, as "cuda".
        zero_stage: DeepSpeed's ZeRO stage; None or 0 where nothing is partitioned.
        fsdp: whether PyTorch's FSDP shards the model.
        max_grad_norm: what gradients are clipped to; 0 is not at all.
        lamb: `bias_correction`, `max_coeff` and `min_coeff` of a lamb as they will be used; by default they are not compared.

    Raises:
        InputError: with the field, the value and the fix.
    """
    kernels, zero = _KERNELS.get(impl, ()), f"ZeRO-{zero_stage}"
    lamb = lamb or {"bias_correction": False, "min_coeff": 0.0, "max_coeff": math.inf}  # nothing to refuse
    low, high = lamb["min_coeff"], lamb["max_coeff"]
    muon_in_zero = bool(zero_stage) and name == "muon"
    outdated = _outdated_deepspeed() if muon_in_zero else None
    refusals = {
        f"optimizer_impl: {impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}": impl
        not in IMPLEMENTATIONS,
        f"optimizer_impl: {impl} has {', '.join(kernels)} here, and optimizer_type is {name}; {_TORCH}": kernels
        and name not in kernels,
        f"optimizer_impl: apex's FusedLAMB does not clamp its trust ratio to [{low:g}, {high:g}]; give max_coeff inf and "
        f"min_coeff 0, or {_TORCH}": impl == "apex" and (low, high) != (0, math.inf),
        "bias_correction: DeepSpeed's FusedLamb corrects behind the trust ratio, not before it as the paper does; "
        f"leave it out, or {_TORCH}": impl == "deepspeed" and lamb["bias_correction"],
        f"optimizer_impl: {impl} runs on NVIDIA GPUs, this run is on {device!r}; {_TORCH}": kernels
        and device != "cuda",
        f"optimizer_type: {name} {_WHOLE.get(name)}; use adamw, adam or muon under {zero}, or {name} without "
        "DeepSpeed": zero_stage and name in _WHOLE,
        f"optimizer_impl: torch's Muon needs whole matrices, and {_FLAT}; use auto, which takes "
        "DeepSpeed's": muon_in_zero and impl == "torch",
        f"optimizer_type: muon under {zero} needs DeepSpeed {_LEAST_DEEPSPEED}: that of the installed {outdated} takes wrong "
        f"steps where gradients are accumulated; {_INSTALL}, or use adamw": outdated,
        f"max_grad_norm: {max_grad_norm:g} under {zero} would clip Muon's finished updates instead of gradients, shrinking "
        "every step; add --max_grad_norm 0": muon_in_zero and max_grad_norm > 0,
        "optimizer_type: adafactor cannot work on FSDP's distributed tensors; use adamw, lamb or muon, or "
        "ddp.yaml": fsdp and name == "adafactor",
        f"optimizer_impl: {impl}'s kernels cannot work on FSDP's distributed tensors; {_TORCH}": fsdp and kernels,
    }
    for message, refused in refusals.items():
        if refused:
            raise InputError(message)
    if kernels:
        _kernel_class(impl, name)


def _outdated_deepspeed() -> str | None:
    """The installed version where its Muon is not right; None too where there is none, which `zero_muon` says."""
    from accelerate.utils import compare_versions

    try:
        return metadata.version("deepspeed") if compare_versions("deepspeed", "<", _LEAST_DEEPSPEED) else None
    except metadata.PackageNotFoundError:
        return None


def _apex_class(name: str, field: str, instead: str) -> Any:
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


def _kernel_class(impl: str, name: str) -> Any:
    if impl == "apex":
        return _apex_class("FusedLAMB" if name == "lamb" else "FusedAdam", "optimizer_impl", _TORCH)
    try:
        return import_module("deepspeed.ops.lamb").FusedLamb
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"optimizer_impl: deepspeed is not installed ({reason}); {_INSTALL}, or {_TORCH}") from None


def fused_optimizer(impl: str, name: str, groups: list[dict[str, Any]], **options: Any) -> torch.optim.Optimizer:
    """An optimizer of apex or DeepSpeed with the `options` of ours, as `check_engine` allows; LAMB without its own clipping."""
    if name == "lamb":
        clamp = {key: options.pop(key) for key in ("max_coeff", "min_coeff")}
        # nvlamb: the trust ratio for tensors without weight decay too, as in the paper's algorithm.
        options |= clamp if impl == "deepspeed" else {"max_grad_norm": math.inf, "use_nvlamb": True}
    else:
        options["adam_w_mode"] = name == "adamw"  # else weight decay is a term of the gradient
    chosen = _kernel_class(impl, name)
    try:
        return chosen(groups, **options)  # type: ignore[no-any-return]
    except Exception as error:  # DeepSpeed compiles its kernel now, and says in many ways that it cannot
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"optimizer_impl: {impl}'s {chosen.__name__} cannot be made here ({reason}); {_TORCH}"
        ) from error


def zero_stage(plugin: Any) -> int | None:
    """The ZeRO stage in Accelerate's DeepSpeedPlugin (`TrainingArguments.deepspeed_plugin`); None without it."""
    return None if plugin is None else int(plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0))


def let_deepspeed_step(plugin: Any, name: str) -> bool:
    """Let ZeRO step the optimizer that we build where it would refuse it or take its own: Muon, and torch's own where the step
    is offloaded to the CPU and DeepSpeed's CPU Adam is not built. Returns whether that is so: building takes a minute.
    """
    stage = zero_stage(plugin)
    if not stage:
        return False
    zero = plugin.deepspeed_config["zero_optimization"]
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    not_built = offloads and not import_module("deepspeed.git_version_info").installed_ops.get("cpu_adam", False)
    if name == "muon" and stage == 3:
        zero["reduce_scatter"] = False  # DeepSpeed's Muon wants whole gradients on every rank
    if name == "muon" or not_built:
        plugin.deepspeed_config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return not_built


def zero_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """DeepSpeed's Muon, which can work on ZeRO's flat partitions, with the updates of torch's `match_rms_adamw`.

    Torch scales an orthogonal update by 0.2 * sqrt(max(rows, columns)), DeepSpeed by sqrt(max(1, rows / columns)):
    their ratio is 0.2 * sqrt(columns) for every shape. It goes into the rate, and out of the weight decay, which the
    rate multiplies; so matrices are grouped by columns.

    Raises:
        InputError: DeepSpeed is not installed.
    """
    try:
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
    except ImportError as error:
        raise InputError(f"optimizer_type: muon under ZeRO is DeepSpeed's ({error}); {_INSTALL}") from None
    scaled: list[dict[str, Any]] = []
    for group in groups:
        for parameter in group["params"]:
            parameter.use_muon = group["use_muon"]
        if not group["use_muon"]:
            scaled.append(group)
            continue
        by_columns: dict[int, list[Any]] = {}
        for parameter in group["params"]:
            by_columns.setdefault(full_shape(parameter)[1], []).append(parameter)
        for columns, members in by_columns.items():
            factor = 0.2 * math.sqrt(columns)
            changed = {"lr": group["lr"] * factor, "weight_decay": group["weight_decay"] / factor}
            scaled.append(group | changed | {"params": members, "ns_method": "standard"})
    return MuonWithAuxAdam(scaled)  # type: ignore[no-any-return]


def full_shape(parameter: torch.Tensor) -> tuple[int, ...]:
    """The shape of the whole parameter: ZeRO-3 leaves an empty tensor and notes the shape as `ds_shape`."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def use_apex(model: nn.Module, device: torch.device | str) -> int:
    """Put apex's module in the place of every nn.LayerNorm of `model`; returns how many.

    The parameters stay themselves, under their names: only the kernel differs from the stock model.

    Raises:
        InputError: `device` is no NVIDIA GPU, apex is not installed, or the model has no LayerNorm, or one without a bias,
            which apex does not compute.
    """
    kind = torch.device(device).type
    if kind != "cuda":
        raise InputError(f"layer_norm_type: apex runs on NVIDIA GPUs, this run is on {kind!r}; {_LEAVE_NORM}")
    fused = _apex_class("FusedLayerNorm", "layer_norm_type", _LEAVE_NORM)
    norms = {name: module for name, module in model.named_modules() if type(module) is nn.LayerNorm}
    if not norms:
        raise InputError(f"layer_norm_type: apex has no LayerNorm to replace in this model; {_LEAVE_NORM}")
    for name, norm in norms.items():
        if norm.elementwise_affine and norm.bias is None:
            raise InputError(
                f"layer_norm_type: apex computes LayerNorm with a bias, and {name} has none; give the model one (modernbert: "
                f"model_config {{norm_bias: true}}), or {_LEAVE_NORM}"
            )
        module = fused(norm.normalized_shape, eps=norm.eps, elementwise_affine=norm.elementwise_affine)
        for own, parameter in norm.named_parameters(recurse=False):
            setattr(module, own, parameter)
        model.set_submodule(name, module.train(norm.training))
    return len(norms)
