"""The one exception for a user's mistake; `cli` prints it as a single line and exits."""


class UserError(ValueError):
    """Bad input (a file, a field, a flag), told in one line: what, where, and the remedy."""
