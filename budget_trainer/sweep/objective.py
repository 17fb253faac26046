"""What is made best: the pinned evaluation of a trial's model, or its score on a task of GLUE."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from budget_trainer.errors import InputError

METRICS = ("bits_per_byte", "loss")
GLUE_OWN = ("task_name", "model_name_or_path", "output_dir", "overwrite_output_dir", "grid", "seeds", "checkpoints")


@dataclass(frozen=True)
class Objective:
    """`metric` of the pinned evaluation: itself the objective, or with `task` what trials are compared by on the way."""

    metric: str = "bits_per_byte"
    task: str | None = None
    glue_flags: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.metric if self.task is None else f"glue: {self.task}"

    @property
    def direction(self) -> str:
        return "minimize" if self.task is None else "maximize"

    def reported(self, value: float) -> float:
        """An evaluation on the way as the study wants it: in the direction of the objective."""
        return value if self.task is None else -value

    def of_evaluation(self, evaluation: Any) -> float | None:
        """The metric in an evaluation of `progress.jsonl` or `run_report.json`; None where it is not a finite number."""
        value = evaluation.get(self.metric) if isinstance(evaluation, dict) else None
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def words(self, model: str, output_dir: str) -> list[str]:
        """The command line of finetune_glue.py for a trial's model."""
        own = [f"--{name}={value}" for name, value in self.glue_flags.items()]
        return ["--task_name", str(self.task), "--model_name_or_path", model, "--output_dir", output_dir, *own]


def read_objective(given: Any) -> Objective:
    """`bits_per_byte`, `loss`, or a mapping of `glue: TASK` and flags of finetune_glue.py. Raises InputError."""
    if isinstance(given, str) and given in METRICS:
        return Objective(given)
    if not isinstance(given, dict) or not isinstance(given.get("glue"), str):
        raise InputError(f"objective: {given!r} is unknown; write bits_per_byte, loss, or {{glue: CoLA}}")
    from budget_trainer.glue.tasks import find_task

    flags = {name: value for name, value in given.items() if name != "glue"}
    for name, value in flags.items():
        if name in GLUE_OWN or not isinstance(value, str):
            raise InputError(f"objective: {name} is not a flag that a trial's score can have; take it out")
    return Objective(task=find_task(given["glue"]).name, glue_flags=flags)
