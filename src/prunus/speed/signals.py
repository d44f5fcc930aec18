"""Signals find the stack that they are handled on, whatever a runtime does with it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stack(ctypes.Structure):
    """Linux' stack_t: where it is, how it is used, how large."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """After the block this thread handles signals on the stack that it did before it.

    OpenVINO gives the thread that builds a network a stack of that network's, and puts back, when the network
    goes, what was there before it: of two networks, the other's, which may be gone. The next signal, as
    Ctrl-C or the end of a child, would then be the end of the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)
