"""The one exception that means "the user can mend this"."""


class InputError(Exception):
    """Wrong input. Its message is one sentence without a full stop: what is wrong, where, and what to do.

    ``python -m bmask`` prints it without a stack trace and exits with status 2.
    """
