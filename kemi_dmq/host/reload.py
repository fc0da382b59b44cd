"""app_python3's own variables: its reload lock, its script version, and the references it drops.

``app_python3`` holds one lock for all processes while a Python callback runs, so a callback that
never returns (our loops) would switch ``app_python.reload`` off.  The lock is given back through
the symbols of the app_python3.so that is already loaded.  Its failed reloads drop references that
it does not own; attach() takes spare ones (docs/kamailio.md).  A reload that is asked for while a
process still loads the script for the one before is lost for that process; LoadWatch notices.
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


class LoadWatch:
    """Whether another reload was asked for while this process loaded the script.

    After a load Kamailio takes the newest version as loaded, also when the text was read before
    that version was there.  Python looks for a module before it reads its file: then we note the
    version, as one of Python's finders, which never finds anything.
    """

    def __init__(self, symbols: ReloadSymbols) -> None:
        self._symbols = symbols
        self._noted: int | None = None
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        # Only a reload names its target; the script's own one comes first.
        if target is not None and self._noted is None:
            self._noted = self._symbols.version

    def overtaken(self) -> bool:
        """To be asked at the end of a load."""
        noted, self._noted = self._noted, None
        return noted is not None and noted != self._symbols.version


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
