"""The error for bad input."""


class UserError(ValueError):
    """Bad input. The message names the file, key or value, what was expected and how to fix it.

    `by_machine`: the cause is not the input but the machine, such as a full disk; it changes the exit code.
    """

    def __init__(self, message: str = "", *, by_machine: bool = False) -> None:
        super().__init__(message)
        self.by_machine = by_machine
