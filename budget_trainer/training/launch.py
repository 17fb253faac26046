"""The process of a run: its log, its trackers, whether the launcher started what was asked for, and its last error."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import logging as hf_logging

from budget_trainer.core.errors import InputError
from budget_trainer.model.cpu import keep_freed_memory


def prepare(run: TrainingArguments, trackers: bool = True) -> None:
    """Configure the log, check the launch and the `trackers` asked for, and on a CPU keep freed memory with the process."""
    configure_logging(run)
    check_launch(run.world_size, run.n_gpu)
    if trackers:
        _check_trackers(run)
    if run.device.type == "cpu":
        keep_freed_memory()


def configure_logging(run: TrainingArguments) -> None:
    """Log at info in the main process and only warnings in the others; TensorBoard writes into the run's folder."""
    level = logging.INFO if run.process_index == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", force=True)
    for noisy in ("httpx", "datasets", "matplotlib", "fsspec", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    hf_logging.set_verbosity_warning()
    hf_logging.disable_progress_bar()  # the budget's bar is the only one
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(Path(str(run.output_dir)) / "tensorboard"))


def _check_trackers(run: TrainingArguments) -> None:
    """Refuse a tracker that is unknown or not installed before anything is written."""
    for name in run.report_to or []:
        try:
            for tracker in get_reporting_integration_callbacks([name]):
                tracker()
        except (ValueError, RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"report_to: {name!r} cannot be used ({reason}); install it, or choose another") from None


def check_launch(processes: int, gpus_of_this_process: int = 1) -> None:
    """Refuse to train alone where the launcher was asked for several processes: each would train its own model.

    Several GPUs in one process are refused too: Trainer would use DataParallel, whose batch is not what was asked for.
    """
    if gpus_of_this_process > 1:
        raise InputError(
            f"num_processes: 1 process sees {gpus_of_this_process} GPUs; launch with accelerate_configs/ddp.yaml "
            f"--num_processes {gpus_of_this_process}, or choose one with CUDA_VISIBLE_DEVICES=0"
        )
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched and "WORLD_SIZE" not in os.environ:  # accelerate's one-process launcher, asked for more
        raise InputError(
            "num_processes: the launcher was asked for several processes and started one (a profile of one process, or "
            "MULTI_CPU without mpirun); launch with accelerate_configs/cpu_2proc.yaml or ddp.yaml"
        )
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    if asked != processes:
        raise InputError(
            f"WORLD_SIZE: the launcher started {asked} processes, but {processes} train together; launch with a profile "
            "of accelerate_configs/ (on a CPU cpu_2proc.yaml, or add --use_cpu true)"
        )
