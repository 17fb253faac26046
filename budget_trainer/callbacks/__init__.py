"""Trainer callbacks, one file each; all of them work with a plain `transformers.Trainer`."""
