"""How a training ends before its end: which signals ask for it, and with which exit code the process says so."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

STOPPED = 75
"""Exit code of a training that a signal has stopped: the same command goes on. EX_TEMPFAIL of ``sysexits.h``."""
LOST_PROCESS = 71
"""Exit code of a training of which a process has died: a loader of data, or the process of another device. EX_OSERR."""

_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class Stopped(BaseException):
    """Raised where a training can stop. It is no ``Exception``, so that nothing takes it for an error and goes on.

    Args:
        number: the signal that asked for it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class LostProcessError(RuntimeError):
    """A process that belongs to the training has died; the last checkpoint is intact."""


class StopRequest:
    """Remembers the signal that asks this process to stop.

    While it is :meth:`listening`, SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) raise :class:`Stopped` at once, but not while it is
    :meth:`deferred`: the training then goes on to a place where it can save. A second SIGINT ends the process at once, as
    checkpoints are replaced as a whole.

    Attributes:
        number: the first signal; None if there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._interrupts = 0
        self._deferred = False
        self._receiver: Callable[[int], object] | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals; the handlers before are restored at the end. Outside of the main thread it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only remember signals.

        Raises:
            Stopped: there was one before.
        """
        before, self._deferred = self._deferred, True
        try:
            self.check()
            yield
        finally:
            self._deferred = before

    @contextlib.contextmanager
    def passed_on(self, receiver: Callable[[int], object]) -> Iterator[None]:
        """Send every signal, also one that has come already, to other processes as well.

        SIGINT is sent as SIGTERM: a terminal sends it to all processes of a command, and a second one would end them at once.

        Args:
            receiver: is called with the number of a signal.
        """
        self._receiver = receiver
        try:
            if self.number is not None:
                self._pass_on(self.number)
            yield
        finally:
            self._receiver = None

    def _pass_on(self, number: int) -> None:
        if self._receiver is not None:
            self._receiver(signal.SIGTERM if number == signal.SIGINT else number)

    def check(self) -> None:
        """Stop here if a signal asks for it.

        Raises:
            Stopped: it does.
        """
        if self.number is not None:
            raise Stopped(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.number = self.number or number
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            if self._receiver is not None:
                self._receiver(signal.SIGINT)
                self._receiver(signal.SIGINT)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self._pass_on(number)
        if not self._deferred:
            raise Stopped(number)
