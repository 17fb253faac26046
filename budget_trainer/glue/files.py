"""The files of a run and of a suite by name."""

from __future__ import annotations

RESULT, RUNS_FILE = "result.json", "glue_runs.json"
RESULT_FORMAT, RUNS_FORMAT = 1, 1  # raise one when what is in the file comes to mean something else
