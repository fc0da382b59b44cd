"""app_python3's own variables: its reload lock, its script version, and the references it drops.

``app_python3`` holds one lock for all processes while a Python callback runs, so a callback that
never returns (our loops) would switch ``app_python.reload`` off.  The lock is given back through
the symbols of the app_python3.so that is already loaded.  Its failed reloads drop references that
it does not own; attach() takes spare ones (docs/kamailio.md).
"""

from __future__ import annotations

import ctypes
import re
import sys
from typing import Any


class ReloadSymbols:
    """``usable`` is False where the symbols are not what we know; then loops return often."""

    def __init__(self) -> None:
        self._lock: Any = None
        self._version: Any = None
        try:
            with open("/proc/self/maps") as maps:
                found = re.search(r"(/\S*app_python3\.so)$", maps.read(), re.MULTILINE)
            if found is None:
                return
            library = ctypes.CDLL(found[1])
            lock = ctypes.c_void_p.in_dll(library, "_sr_python_reload_lock").value
            version = ctypes.c_void_p.in_dll(library, "_sr_python_reload_version").value
            if lock and version:
                self._lock = ctypes.c_int.from_address(lock)
                self._version = ctypes.c_int.from_address(version)
        except (OSError, ValueError):
            pass

    def release(self) -> bool:
        """Give the reload lock back if it is held; False if this is not the lock that we know.

        It may be another process that holds it (then Kamailio called us without it): freed early
        it only lets two processes load the script at once, each for itself.
        """
        if self._lock is None or self._lock.value not in (0, 1):
            return False
        self._lock.value = 0
        return True

    @property
    def version(self) -> int:
        """How often a reload was asked for since the start; 0 where that cannot be read."""
        return int(self._version.value) if self._version is not None else 0


_SPARE = 1 << 28
_kept: set[int] = set()


def keep(value: object) -> None:
    """Take so many references to value that no failed reload can use them up."""
    if id(value) in _kept:
        return
    _kept.add(id(value))
    before = sys.getrefcount(value)
    if sys.byteorder == "little":
        # The count is the first 32 bits of an object (CPython 3.11 to 3.14).
        word = ctypes.c_uint32.from_address(id(value))
        if word.value < _SPARE:
            word.value += _SPARE
            if sys.getrefcount(value) == before + _SPARE:
                return
            word.value -= _SPARE
        elif before >= _SPARE:
            return  # immortal
    for _ in range(100_000):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
