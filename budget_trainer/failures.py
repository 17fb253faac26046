"""What a machine refuses, said in one line: disks that do not take what is written, memory that is not there."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainingArguments

from budget_trainer import checkpoints
from budget_trainer.errors import RunError

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # what writing a checkpoint raises
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors writes in Rust
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container")


def disk_failure(error: BaseException) -> str | None:
    """Why a disk did not take what was written, in the words of the system; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, SafetensorError) and (found := _OS_ERROR.search(str(error))):
        code = int(found.group(1))
    if code in _DISK:
        return os.strerror(code)
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _TORCH_WRITER):
        return "the disk took a part of it"
    return None


def not_written(path: Path, reason: str, output_dir: Path) -> RunError:
    """The end of a run whose folder takes no more: what, why, what is left and how to go on."""
    there = next((folder for folder in (output_dir, *output_dir.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    newest = checkpoints.newest(output_dir)
    return RunError(
        f"output_dir: {path} could not be written ({reason}, {free / 1e6:.1f} MB free); make room there, then go on from "
        f"{newest or 'the beginning'} with --resume_from_checkpoint auto"
    )


def lacks_memory(error: BaseException | None) -> bool:
    """Whether the error means that memory, a GPU's or the machine's, was refused."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def memory_told(run: TrainingArguments) -> Iterator[None]:
    """RunError in the place of an error that means: a micro-batch did not fit into memory."""
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        text = " ".join(str(error).split())
        size = run.per_device_train_batch_size
        smaller = f"give {size // 2} and twice the gradient_accumulation_steps" if size > 1 else "take a smaller model"
        asked = re.search(r"ried to allocate ([\d.]+ \w+)", text)
        wanted = f" ({asked.group(1)} more were asked for)" if asked else ""
        raise RunError(
            f"per_device_train_batch_size: {size} does not fit into the memory of rank {run.process_index}'s "
            f"{run.device.type}{wanted}; {smaller}, then go on with --resume_from_checkpoint auto"
        ) from error
