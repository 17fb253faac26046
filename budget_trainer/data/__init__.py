"""The data folder, the exact order of its blocks, and masking. Needs torch and NumPy, not Transformers."""
