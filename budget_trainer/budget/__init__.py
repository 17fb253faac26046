"""The clock, curves, stages, the control message, scheduler, callback, mixin.

What a plug-in user needs. Clock and curves need the standard library only, scheduler and channel torch, callback and mixin
Transformers.
"""
