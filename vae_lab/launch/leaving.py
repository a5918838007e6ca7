"""For a warm server alone, which imports it first: it ends when all else that wants to be called at the end was called,
without taking its modules apart, which takes a third of a second."""

import atexit
import os


def leave(server: int) -> None:
    """Ends this process if it is the server, and none that was forked of it."""
    if os.getpid() == server:
        os._exit(0)


atexit.register(leave, os.getpid())
