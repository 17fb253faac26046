"""The data folder, the exact order of its blocks, masking.

The data of step k is a function of the seed and k alone. Needs torch and NumPy, not Transformers.
"""
