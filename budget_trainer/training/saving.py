"""Saving for a Trainer: written aside, made durable, renamed; complete or absent (`checkpoints` does the files)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, set_seed

from budget_trainer.budget.callback import TimeBudgetCallback
from budget_trainer.budget.channel import ControlChannel
from budget_trainer.budget.clock import BudgetClock
from budget_trainer.core.io import fresh_folder
from budget_trainer.training import checkpoints
from budget_trainer.training.checkpoints import WRITE_ERRORS, disk_failure, write_error
from budget_trainer.training.engine import engine_name

REPORT_BYTES = 2**20  # for the report, its picture and the card, beside the model
SPEED_KEY = "speed"  # in TrainerState.stateful_callbacks

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class CompleteSaves(_Base):
    """Mixed into a Trainer with a TimeBudgetCallback; every save is charged to the clock's `save`."""

    time_budget: TimeBudgetCallback
    identity: dict[str, Any]
    speed: dict[str, Any]
    _staging: Path | None = None

    @property
    def channel(self) -> ControlChannel:
        return self.time_budget.channel

    @property
    def clock(self) -> BudgetClock:
        assert self.time_budget.clock is not None
        return self.time_budget.clock

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if (
            state_dict is not None
        ):  # gathered from ZeRO's or FSDP's ranks, where a tied tensor comes once for each name
            tied = getattr(self.model, "all_tied_weights_keys", None) or {}
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in tied}
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # a pickle that nobody reads has no place beside safetensors
            Path(output_dir or str(self.args.output_dir), "training_args.bin").unlink(missing_ok=True)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _write_aside(self, target: Path, write: Callable[[Path], None], manifest: dict | None) -> float:
        """Let all ranks write `target` aside, then publish it; returns the seconds it took.

        RunError on the rank whose disk does not take it; what was complete stays.
        """
        clock, channel = self.clock, self.channel
        begin = clock.seconds_by_phase()["save"]
        with clock.phase("save"):
            staging = checkpoints.staging_folder(target)
            try:
                if self.args.should_save:
                    fresh_folder(staging)
                channel.barrier()
                write(staging)
                channel.barrier()
                if self.args.should_save:
                    checkpoints.publish(staging, target, manifest)
                channel.barrier()
            except WRITE_ERRORS as error:
                reason = disk_failure(error)
                if reason is None:
                    raise
                if self.args.world_size == 1:  # else other ranks may still write there; the next job clears it away
                    checkpoints.discard(target)
                raise write_error(target, reason, target.parent) from error
        return clock.seconds_by_phase()["save"] - begin

    def save_folder(self, target: str | os.PathLike[str]) -> float:
        """Write the model and its tokenizer to `target`, complete or absent; returns seconds. Call it on all ranks."""
        return self._write_aside(Path(target), lambda folder: self.save_model(str(folder), _internal_call=True), None)

    def rehearse_save(self, output_dir: str | os.PathLike[str], reserve_disk: bool = False) -> None:
        """Write the model once and delete it: how long the end will take, and that the disk takes it, known early.

        With `reserve_disk` as much of the disk is kept for the end: one that fills up meanwhile does not cost the model.
        """
        folder = Path(output_dir) / ".partial-rehearsal"
        if self.args.should_save:
            checkpoints.release_disk_space(folder.parent)
        trainer: Any = self
        if (
            trainer.is_deepspeed_enabled
        ):  # there is no engine yet that could gather: the plain model, by the main process

            def write(staging: Path) -> None:
                if self.args.should_save:
                    self._save(str(staging))

            seconds = self._write_aside(folder, write, None)
        else:
            seconds = self.save_folder(folder)
        if self.args.should_save:
            size = sum(path.stat().st_size for path in folder.rglob("*"))
            shutil.rmtree(folder)
            if reserve_disk:
                self._hold_room(folder.parent, size + REPORT_BYTES)
        self.time_budget.save_seconds = self.time_budget.save_allowance(seconds)
        self.time_budget.checkpoint_seconds = 4.5 * seconds + 0.2  # weights and two moments, until one was measured

    @staticmethod
    def _hold_room(output_dir: Path, size: int) -> None:
        try:
            checkpoints.reserve_disk_space(output_dir, size)
        except OSError as error:
            checkpoints.release_disk_space(output_dir)
            raise write_error(output_dir / "final", os.strerror(error.errno or 0), output_dir) from error

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Every rank's own random states; with another number of ranks they are drawn anew from seed, step and rank."""
        manifest = checkpoints.read_manifest(Path(checkpoint)) if checkpoint is not None else None
        if manifest is None or manifest["world_size"] == self.args.world_size:
            super()._load_rng_state(checkpoint)
            return
        set_seed((self.args.seed + 1_000_003 * manifest["step"] + 7_919 * self.args.process_index) % 2**31)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Trainer's checkpoint, written aside under its own name and published with a manifest."""
        run_dir = Path(str(self.args.output_dir))
        state: Any = self.state
        state.stateful_callbacks[SPEED_KEY] = self.speed
        target = run_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            checkpoints.make_room(run_dir, self.args.save_total_limit)

        def write(staging: Path) -> None:
            self._staging = staging.parent / f"{staging.name}.trainer"
            try:
                super(CompleteSaves, self)._save_checkpoint(model, trial)
                self.channel.barrier()
                if self.args.should_save:
                    staging.rmdir()
                    (self._staging / target.name).rename(staging)
                    self._staging.rmdir()
            finally:
                self._staging = None

        manifest = {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "engine": engine_name(self.args),
            "identity": self.identity,
        }
        self.time_budget.checkpoint_seconds = self._write_aside(target, write, manifest)
        if self.args.should_save:
            checkpoints.rotate(run_dir, self.args.save_total_limit)
