"""What a budget will buy on this machine: a probe and a prediction.

The probe measures on the run's own objects for a minute, the prediction lets the run's own callbacks decide on a fake clock.
The command is `python -m budget_trainer.plan`.
"""

REPORT_FILE = "report.pickle"  # by which the probe speaks to that command
