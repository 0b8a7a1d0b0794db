"""The error that is the user's to mend: shown as one line, without a stack trace."""


class UserError(ValueError):
    """A wrong path, recipe, checkpoint or device: the message says what was expected, what came and what to do."""
