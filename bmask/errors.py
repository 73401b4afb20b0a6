"""What ends a command in one sentence, and a notebook's cell alike."""

from contextlib import contextmanager


class InputError(Exception):
    """Wrong input. Its message is one sentence without a full stop: what is wrong, where, and what to do.

    ``python -m bmask`` prints it without a stack trace and exits with status 2.
    """

    def _render_traceback_(self):
        """What IPython shows in the place of a stack trace."""
        return [f"bmask: {self}"]


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or the stop button of a notebook."""

    def __str__(self):
        return "stopped; the same again goes on from the checkpoints of trainings, if there are any"

    _render_traceback_ = InputError._render_traceback_


@contextmanager
def stoppable():
    """Within it an interrupt is :class:`Stopped`, which a notebook shows as one sentence."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped from None
