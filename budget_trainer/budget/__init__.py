"""The budget and what follows from it: clock, curves, stages, the control message, scheduler, callback, mixin.

This is what a plug-in user needs; clock and curves need the standard library only.
"""
