"""The error that tells a user what to mend."""


class UserError(ValueError):
    """Bad input. The message names the file, key or value, what was expected and how to mend it."""
