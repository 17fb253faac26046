"""What ends a run early, each with a message of one line."""


class InputError(ValueError):
    """Bad input. The message is one line that names the field, its value and the fix; nothing was written over."""


class RunError(RuntimeError):
    """A run that cannot go on. The message is one line with the cause and what is left; checkpoints stay as they are."""


class LostRank(RunError):
    """A process of the run no longer answers."""


class Diverged(RunError):
    """Going back to a checkpoint and lowering the learning rate did not help."""


class StopAsked(Exception):
    """A signal asked for a stop before there was anything to save."""
