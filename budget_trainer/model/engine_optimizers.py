"""Optimizers of apex and DeepSpeed, and which optimizer runs where: every refusal is made before training.

Both packages are imported only where they are asked for. apex is NVIDIA's, built from source; the package of that name
on the public index is another one.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import torch

from budget_trainer.core.errors import InputError

IMPLEMENTATIONS = ("auto", "torch", "apex", "deepspeed")
_KERNELS = {"apex": ("adam", "adamw", "lamb"), "deepspeed": ("lamb",)}
_TORCH = "use optimizer_impl auto"
_INSTALL = {
    "apex": (
        "build NVIDIA's from source (https://github.com/NVIDIA/apex with its CUDA extensions; the package named apex on "
        "the public index is another one)"
    ),
    "deepspeed": "pip install 'deepspeed>=0.19'",
}
_FLAT = "ZeRO cuts the parameters into flat partitions"
_WHOLE = {
    "lamb": f"needs the norm of whole tensors, and {_FLAT}",
    "adafactor": f"factors whole matrices, and {_FLAT}",
}


def check_engine(
    name: str,
    impl: str,
    *,
    device: str,
    zero_stage: int | None = None,
    fsdp: bool = False,
    max_grad_norm: float = 0.0,
) -> None:
    """Refuse an optimizer or an implementation that cannot run on this device or under this engine.

    Args:
        name, impl: `optimizer_type` and `optimizer_impl`.
        device: the type of the device, as "cuda".
        zero_stage: DeepSpeed's ZeRO stage; None or 0 where nothing is partitioned.
        fsdp: whether PyTorch's FSDP shards the model.
        max_grad_norm: what gradients are clipped to; 0 is not at all.

    Raises:
        InputError: with the field, the value and the fix.
    """
    if impl not in IMPLEMENTATIONS:
        raise InputError(f"optimizer_impl: {impl!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    if impl in _KERNELS:
        if name not in _KERNELS[impl]:
            raise InputError(
                f"optimizer_impl: {impl} has {', '.join(_KERNELS[impl])} here, and optimizer_type is {name}; {_TORCH}"
            )
        if device != "cuda":
            raise InputError(f"optimizer_impl: {impl} runs on NVIDIA GPUs, this run is on {device!r}; {_TORCH}")
    if zero_stage:
        _check_zero(name, impl, zero_stage, max_grad_norm)
    if fsdp:
        _check_fsdp(name, impl)
    if impl in _KERNELS:
        fused_class(impl, name)


def _check_zero(name: str, impl: str, zero_stage: int, max_grad_norm: float) -> None:
    if name in _WHOLE:
        raise InputError(
            f"optimizer_type: {name} {_WHOLE[name]}; use adamw, adam or muon under ZeRO-{zero_stage}, or {name} without "
            "DeepSpeed"
        )
    if name != "muon":
        return
    if impl == "torch":
        raise InputError(
            f"optimizer_impl: torch's Muon needs whole matrices, and {_FLAT}; use auto, which takes DeepSpeed's"
        )
    if max_grad_norm > 0:
        raise InputError(
            f"max_grad_norm: {max_grad_norm:g} under ZeRO-{zero_stage} would clip Muon's finished updates instead of "
            "gradients, shrinking every step; add --max_grad_norm 0"
        )


def _check_fsdp(name: str, impl: str) -> None:
    if name == "adafactor":
        raise InputError(
            "optimizer_type: adafactor cannot work on FSDP's distributed tensors; use adamw, lamb or muon, or ddp.yaml"
        )
    if impl in _KERNELS:
        raise InputError(f"optimizer_impl: {impl}'s kernels cannot work on FSDP's distributed tensors; {_TORCH}")


def zero_stage(plugin: Any) -> int | None:
    """The ZeRO stage in Accelerate's DeepSpeedPlugin (`TrainingArguments.deepspeed_plugin`); None without DeepSpeed."""
    return None if plugin is None else int(plugin.deepspeed_config.get("zero_optimization", {}).get("stage", 0))


def keep_optimizer(plugin: Any, name: str) -> None:
    """Let DeepSpeed take an optimizer that is not on its list, with offloading too, instead of its own Adam.

    Its Muon under ZeRO-3 wants whole gradients on every rank.
    """
    if name == "muon" and zero_stage(plugin) == 3:
        plugin.deepspeed_config["zero_optimization"]["reduce_scatter"] = False
    plugin.deepspeed_config["zero_allow_untested_optimizer"] = True
    plugin.deepspeed_config["zero_force_ds_cpu_optimizer"] = False


def needs_cpu_adam_built(plugin: Any) -> bool:
    """Whether the optimizer's step is offloaded to the CPU and DeepSpeed would compile its CPU Adam for it first.

    That takes a minute out of the budget; DS_BUILD_CPU_ADAM=1 when DeepSpeed is installed builds it in advance.
    """
    offload = plugin.deepspeed_config.get("zero_optimization", {}).get("offload_optimizer") or {}
    if offload.get("device", "none") == "none":
        return False
    return not import_module("deepspeed.git_version_info").installed_ops.get("cpu_adam", False)


def fused_class(impl: str, name: str) -> Any:
    """Return the class of a fused optimizer.

    Raises:
        InputError: its package is not installed, or without its CUDA kernels.
    """
    kind = "Adam" if name in ("adam", "adamw") else "LAMB" if impl == "apex" else "Lamb"
    try:
        module = import_module("apex.optimizers" if impl == "apex" else "deepspeed.ops.lamb")
        if impl == "apex":
            import_module("amp_C")  # the kernels; apex without them fails only when an optimizer is made
        return getattr(module, f"Fused{kind}")
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"optimizer_impl: {impl} is not installed ({reason}); {_INSTALL[impl]}, or {_TORCH}"
        ) from None


def fused_adam(groups: list[dict[str, Any]], *, decoupled: bool, **adam: Any) -> torch.optim.Optimizer:
    """apex's FusedAdam: AdamW where weight decay is `decoupled`, else Adam."""
    return fused_class("apex", "adam")(groups, adam_w_mode=decoupled, **adam)  # type: ignore[no-any-return]


def fused_lamb(
    impl: str, groups: list[dict[str, Any]], *, bias_correction: bool, max_coeff: float, min_coeff: float, **adam: Any
) -> torch.optim.Optimizer:
    """apex's FusedLAMB or DeepSpeed's FusedLamb, without their own clipping; see `check_lamb` for the errors."""
    check_lamb(impl, bias_correction=bias_correction, max_coeff=max_coeff, min_coeff=min_coeff)
    # nvlamb: the trust ratio for tensors without weight decay too, as in the paper's algorithm.
    options: dict[str, Any] = {"max_grad_norm": math.inf, "use_nvlamb": True}
    if impl == "deepspeed":
        options = {"max_coeff": max_coeff, "min_coeff": min_coeff}
    chosen = fused_class(impl, "lamb")
    try:
        return chosen(groups, bias_correction=bias_correction, **options, **adam)  # type: ignore[no-any-return]
    except Exception as error:  # DeepSpeed compiles its kernel now, and says in many ways that it cannot
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"optimizer_impl: {impl}'s FusedLamb cannot be made here ({reason}); {_TORCH}") from error


def check_lamb(impl: str, *, bias_correction: bool, max_coeff: float, min_coeff: float) -> None:
    """Refuse (InputError) options with which a fused kernel would compute something else than our own Lamb does."""
    if impl == "apex" and (max_coeff != math.inf or min_coeff != 0):
        raise InputError(
            f"optimizer_impl: apex's FusedLAMB does not clamp its trust ratio to [{min_coeff:g}, {max_coeff:g}]; give "
            f"max_coeff inf and min_coeff 0, or {_TORCH}"
        )
    if impl == "deepspeed" and bias_correction:
        raise InputError(
            "bias_correction: DeepSpeed's FusedLamb corrects behind the trust ratio, not before it as the paper does; "
            f"leave it out, or {_TORCH}"
        )


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
        raise InputError(
            f"optimizer_type: muon under ZeRO is DeepSpeed's ({error}); {_INSTALL['deepspeed']}"
        ) from None
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
