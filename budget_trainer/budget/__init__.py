"""The clock, curves, stages, the control message, scheduler, callback, mixin. What a plug-in user needs."""
