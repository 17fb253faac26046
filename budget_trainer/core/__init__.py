"""Errors, files, how commands begin and end, child processes. What every other package stands on."""
