"""Fine-tuning on GLUE: the tasks, their data and metrics, one run, and the suite of all runs."""
