"""The error that tells a user what to mend."""


class UserError(ValueError):
    """Bad input. The message names the file, key or value, what was expected and how to mend it.

    `by_machine`: it is not the input that is bad, the disk has refused; the exit code says so.
    """

    def __init__(self, message: str = "", *, by_machine: bool = False) -> None:
        super().__init__(message)
        self.by_machine = by_machine
