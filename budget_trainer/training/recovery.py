"""What a run does about bad steps, on its own device and rank, and about memory that is refused.

What all ranks have agreed on is for `callbacks.Guard`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainingArguments

from budget_trainer.core.errors import RunError


class BadSteps:
    """Judges steps and takes the effect of bad ones away, without the host waiting for the device.

    On a CPU the gradients are dropped: the optimizer leaves weights and moments as they are. On a GPU a fused Adam is
    told not to step, other optimizers get gradients of zero (their momentum still moves the weights), and what was bad
    is known one step later. DeepSpeed and fp16's scaler skip such steps themselves.
    """

    def __init__(self) -> None:
        self._last: bool | torch.Tensor = False
        # Whether the newest step whose work is known to be done was bad: this one on a CPU, the one before on a GPU.
        self.finished: bool | torch.Tensor = False

    def judge(self, value: Any, model: torch.nn.Module, optimizer: Any) -> torch.Tensor:
        """Whether `value` of the step to be taken is not finite: bool []. The gradient norm is the same on all ranks."""
        if hasattr(value, "full_tensor"):  # FSDP's norm is a DTensor
            value = value.full_tensor()
        bad = ~torch.isfinite(torch.as_tensor(0.0 if value is None else value).detach())
        if bad.device.type == "cpu":
            self.finished = bool(bad)
            for parameter in model.parameters() if self.finished else ():
                parameter.grad = None
        else:
            self.finished, self._last = self._last, bad
            if bad.device.type == "cuda":  # elsewhere (MPS) whoever reads it waits for the device
                self._last = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
            withhold(bad, model, optimizer)
        return bad


def withhold(bad: torch.Tensor, model: torch.nn.Module, optimizer: Any) -> None:
    """Where `bad` (bool [], on the device) is true, keep the gradients from the optimizer, without reading it."""
    inner = getattr(optimizer, "optimizer", optimizer)
    if getattr(inner, "_step_supports_amp_scaling", False):  # torch's fused Adam and AdamW
        inner.grad_scale, inner.found_inf = None, bad.float()
        return
    for parameter in model.parameters():
        grad: Any = parameter.grad
        if grad is not None:
            (grad.to_local() if hasattr(grad, "to_local") else grad).masked_fill_(bad, 0.0)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error means that memory, a GPU's or the machine's, was refused."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def explain_out_of_memory(run: TrainingArguments) -> Iterator[None]:
    """RunError in the place of an error that means: a micro-batch did not fit into memory."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        size = run.per_device_train_batch_size
        smaller = f"give {size // 2} and twice the gradient_accumulation_steps" if size > 1 else "take a smaller model"
        asked = re.search(r"ried to allocate ([\d.]+ \w+)", text)
        wanted = f" ({asked.group(1)} more were asked for)" if asked else ""
        raise RunError(
            f"per_device_train_batch_size: {size} does not fit into the memory of rank {run.process_index}'s "
            f"{run.device.type}{wanted}",
            fix=smaller,
            resumable=True,
        ) from error
