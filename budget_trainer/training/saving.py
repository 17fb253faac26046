"""A Trainer with a budget whose folders are complete or absent: the model, training checkpoints, and going back to one."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, set_seed
from transformers.utils import SAFE_WEIGHTS_NAME as WEIGHTS

from budget_trainer.budget.callback import store_state
from budget_trainer.budget.channel import ControlChannel
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.budget.mixin import TimeScheduleMixin
from budget_trainer.core.errors import RunError
from budget_trainer.core.io import fresh_folder, write_json_atomic
from budget_trainer.model.checkpoint import scale_weights
from budget_trainer.training.engine import engine_name, needs_conversion, restore_group_options
from budget_trainer.training.run_folder import (
    COMPUTE_MODE_KEY,
    RunFolder,
    complete_manifest,
    explain_full_disk,
    publish,
    read_manifest,
    staging_folder,
    step_of,
)

log = logging.getLogger(__name__)
_REPORT_BYTES = 2**20  # for the report, its picture and the card, beside the model


class SavingTrainer(TimeScheduleMixin, Trainer):
    """Writes every folder aside, makes it durable and renames it; each save is charged to the clock's phase `save`.

    `final_weight_rms` scales the models that it saves (see model/checkpoint.py), never its checkpoints. `identity` says what a
    checkpoint belongs to (compared on resume), `compute_mode` what was resolved about precision and compilation; both go
    into the checkpoints.
    """

    leads = False

    def __init__(
        self,
        *args: Any,
        identity: dict[str, Any] | None = None,
        compute_mode: dict[str, Any] | None = None,
        final_weight_rms: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.final_weight_rms = final_weight_rms
        self.identity, self.compute_mode = identity or {}, compute_mode or {}
        self._staging: Path | None = None  # where Trainer writes a checkpoint at the moment
        self._saved_bytes = 0  # of a model, once the save was rehearsed
        super().__init__(*args, **kwargs)

    @property
    def channel(self) -> ControlChannel:
        return self.time_budget.channel

    @property
    def clock(self) -> BudgetClock:
        assert self.time_budget.clock is not None
        return self.time_budget.clock

    @property
    def engine_places_model(self) -> bool:
        """Whether DeepSpeed or FSDP takes the model from the CPU to its devices, when training begins."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    # ---- the model ----

    def save_folder(self, target: str | os.PathLike[str]) -> float:
        """Write the model and its tokenizer to `target`, complete or absent; returns seconds. Call it on all ranks."""
        rms = self.final_weight_rms

        def write(folder: Path) -> None:
            self.save_model(str(folder), _internal_call=True)
            if self.args.should_save and (rms or getattr(self.model, "detection", None) is not None):
                weights = {n: t for n, t in load_file(folder / WEIGHTS).items() if not n.startswith("detection.")}
                if rms is not None:
                    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                    weights, config["norm_eps"] = scale_weights(weights, rms, config["norm_eps"])
                    write_json_atomic(folder / "config.json", config)
                save_file(weights, folder / WEIGHTS, {"format": "pt"})

        return self._write_aside(Path(target), write)

    def rehearse_save(self, output_dir: str | os.PathLike[str], reserve_disk: bool = False) -> None:
        """Write the model once and delete it: how long the end will take, and that the disk takes it, known early.

        With `reserve_disk` as much of the disk is kept for the end: one that fills up meanwhile does not cost the model.
        """
        output_dir = Path(output_dir)
        folder = output_dir / ".partial-rehearsal"
        if self.args.should_save:
            RunFolder(output_dir).release_disk_space()
        if not self.is_deepspeed_enabled:
            seconds = self.save_folder(folder)
        else:  # no engine yet that could gather: the plain model, by the main process
            main = self.args.should_save
            seconds = self._write_aside(folder, lambda staging: self._save(str(staging)) if main else None)
        if self.args.should_save:
            self._saved_bytes = sum(path.stat().st_size for path in folder.rglob("*"))
            shutil.rmtree(folder)
            if reserve_disk:
                RunFolder(output_dir).reserve_disk_space(self._saved_bytes + _REPORT_BYTES)
        self.time_budget.save_seconds = self.time_budget.save_allowance(seconds)
        self.time_budget.checkpoint_seconds = 4.5 * seconds + 0.2  # weights and two moments, until one was measured

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # Gathered from ZeRO's or FSDP's ranks, a tied tensor comes once for each name.
        if state_dict is not None:
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle that nobody reads has no place beside safetensors
            Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def _write_aside(self, target: Path, write: Callable[[Path], None], manifest: dict | None = None) -> float:
        """Let all ranks write `target` aside, then publish it; returns the seconds it took.

        RunError on the rank whose disk does not take it; what was complete stays.
        """
        staging = staging_folder(target)
        with self.clock.phase("save") as spent, explain_full_disk(target, alone=self.args.world_size == 1):
            if self.args.should_save:
                fresh_folder(staging)
            self.channel.barrier()
            write(staging)
            self.channel.barrier()
            if self.args.should_save:
                publish(staging, target, manifest)
            self.channel.barrier()
            return spent()

    # ---- training checkpoints ----

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Trainer's checkpoint, written aside under its own name and published with a manifest."""
        folder, name = RunFolder(Path(str(self.args.output_dir))), f"checkpoint-{self.state.global_step}"
        store_state(self.state, COMPUTE_MODE_KEY, self.compute_mode)
        save_checkpoint = super()._save_checkpoint

        def write(staging: Path) -> None:
            self._staging = staging.parent / f"{staging.name}.trainer"
            try:
                save_checkpoint(model, trial)
                self.channel.barrier()
                if self.args.should_save:
                    staging.rmdir()
                    (self._staging / name).rename(staging)
                    self._staging.rmdir()
            finally:
                self._staging = None

        manifest = {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "engine": engine_name(self.args),
            "identity": self.identity,
        }
        if self.args.should_save:
            folder.rotate(self.args.save_total_limit, before_save=True)
        self.time_budget.checkpoint_seconds = self._write_aside(folder.path / name, write, manifest)
        if self.args.should_save:
            folder.rotate(self.args.save_total_limit)

    def save_checkpoint_of_end(self) -> None:
        """The training checkpoint of the last step, behind the training, from which a run with more time goes on.

        Left out where it is there, and with a warning where the main process's disk has no room for weights, two moments and a
        margin. Call it on all ranks.
        """
        folder, free, there = Path(str(self.args.output_dir)), 0, False
        if self.args.should_save:
            free, newest = shutil.disk_usage(folder).free, RunFolder(folder).newest_checkpoint()
            there = newest is not None and step_of(newest) == self.state.global_step
        has_room, there = self.channel.gather((free >= 4 * self._saved_bytes, there))[0]
        if there:
            return
        if has_room:
            model: Any = self.model
            self._save_checkpoint(model, None)
        else:
            text = "%s: no room on the disk for the checkpoint of the end, so this run cannot be given more time"
            log.warning(text, folder)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Every rank's own random states; with another number of ranks they are drawn anew from seed, step and rank."""
        manifest = read_manifest(Path(checkpoint)) if checkpoint is not None else None
        if manifest is None or manifest["world_size"] == self.args.world_size:
            super()._load_rng_state(checkpoint)
            return
        set_seed((self.args.seed + 1_000_003 * manifest["step"] + 7_919 * self.args.process_index) % 2**31)

    def load_newest_checkpoint(self) -> Path | None:
        """Weights, optimizer and random states of the newest complete checkpoint; clock, data and schedule stay.

        Call it on all ranks between two steps. Returns the checkpoint, or None where there is none yet.
        """
        run_dir = Path(str(self.args.output_dir))
        newest = RunFolder(run_dir).newest_checkpoint()
        name = self.channel.gather(None if newest is None else newest.name)[0]
        scheduler: Any = self.lr_scheduler
        if name is None:
            scheduler.refresh()
            return None
        folder = run_dir / name
        with self.clock.phase("save"):
            complete_manifest(folder, checksums=True)
            self._load_weights(str(folder))
            self._load_optimizer_and_scheduler(str(folder))
            self._load_rng_state(str(folder))
            scheduler.refresh()  # the optimizer has brought its old rates back
            self.channel.barrier()
        return folder

    def _load_weights(self, folder: str) -> None:
        """The weights of a checkpoint, with DeepSpeed its optimizer state too."""
        if not self.is_deepspeed_enabled:
            self._load_from_checkpoint(folder, self.model_wrapped if self.is_fsdp_enabled else None)
            return
        engine: Any = self.model_wrapped
        engine._config.load_universal_checkpoint = converted = needs_conversion(Path(folder), self.args)
        groups = [dict(group) for group in engine.optimizer.optimizer.param_groups]
        path, _ = engine.load_checkpoint(folder, load_lr_scheduler_states=False)
        if path is None:
            raise RunError(f"roll-back: DeepSpeed finds nothing to load in {folder}; resume from an older checkpoint")
        if converted:
            restore_group_options(engine.optimizer.optimizer, groups)
