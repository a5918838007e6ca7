"""Python's garbage collection and imports: those of torch make a million objects, none of which ever is garbage."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spared() -> Iterator[None]:
    """Nothing is collected meanwhile, or until `heeded`; for what imports torch for the first time, if it does.

    It takes a quarter less time, and so does each later collection. Where torch is there already nothing is changed:
    other objects than modules may be, which become garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        heeded()


def heeded() -> None:
    """Garbage is collected from now on, and what is there is looked at no more, if it was spared until now."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
