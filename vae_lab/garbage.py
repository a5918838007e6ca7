"""Python's garbage collection and imports: those of torch make a million objects, none of which ever is garbage."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spared() -> Iterator[None]:
    """Nothing is collected meanwhile, and what is there at the end is looked at no more; for the first import of torch.

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
        gc.freeze()
        gc.enable()
