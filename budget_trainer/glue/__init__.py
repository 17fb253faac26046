"""Fine-tuning on GLUE: one run, a suite of runs, reports, leaderboard files.

Used by `finetune_glue.py`; a suite starts a process of it for each run.
"""
