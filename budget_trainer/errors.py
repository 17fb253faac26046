"""The one error for input that a person can correct."""


class InputError(ValueError):
    """Bad input. The message is one line that names the field, its value and the fix; nothing was written over."""
