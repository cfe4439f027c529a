"""The exception for a user's mistake; `cli` prints it as a single line and exits."""


class UserError(ValueError):
    """Bad input (a file, a field, a flag). The message is one line: where, what, and the remedy."""
