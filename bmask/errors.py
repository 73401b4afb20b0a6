"""What ends a command in one sentence, and a notebook's cell alike."""

import difflib
from contextlib import contextmanager
from typing import Iterable


class InputError(Exception):
    """Wrong input. Its message is one sentence without a full stop: what is wrong, where, and what to do.

    ``python -m bmask`` prints it without a stack trace and exits with status 2.
    """

    def __str__(self):
        text = super().__str__()
        if text.startswith("Caught "):  # in another process, which sends its stack trace along
            text = text.strip().splitlines()[-1].removeprefix(f"{__name__}.InputError: ")
        return escaped(text)

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


def nearest(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name, with the nearest known one: that before a hyphen, if it is known."""
    (close,) = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    close = next((each for each in known if str(name).startswith(f"{each}-")), close)
    return InputError(f"there is no {kind} {name!r}: did you mean {close!r}; known are {', '.join(known)}")


def escaped(text) -> str:
    """On one line, with what cannot be printed escaped: a name has line breaks, or bytes that are no UTF-8."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def one_line(error: BaseException) -> str:
    """The message of a library's error, fit for the brackets of a sentence."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    text = " ".join(str(text).split()) or type(error).__name__
    text = text if len(text) < 250 else f"{text[:120]} ... {text[-120:]}"
    return text.rstrip(".").replace(". ", ", ")
