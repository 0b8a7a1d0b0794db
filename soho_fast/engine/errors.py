"""The error that is the user's to mend: shown as one line, without a stack trace."""

import errno

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of the OSErrors that a full or read-only disk gives, wherever something is written."""


class UserError(ValueError):
    """A wrong path, recipe, checkpoint or device: the message says what was expected, what came and what to do."""
