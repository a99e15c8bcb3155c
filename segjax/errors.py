"""The one exception a user is meant to read."""


class SegjaxError(Exception):
    """A failure that its reader can mend.

    The message is one sentence (a list may follow it) that names the file, the config field or the
    tensor, and says what to do. The command line prints it without a traceback and exits with
    status 1.
    """
