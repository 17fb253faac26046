"""Native models, sparse prediction, attention, loss, first weights, optimizers.

What is saved loads with stock Transformers: the library's classes, names and weights, with another forward underneath.
"""
