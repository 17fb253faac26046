"""What every other package stands on: errors, files, commands, child processes. Imports nothing of ours."""
