"""What memory this process holds: proc(5) on Linux, elsewhere the highest ever, getrusage(2)."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

CLEAR = Path("/proc/self/clear_refs")


def held_bytes() -> int:
    """Return the memory that this process holds now; its most so far where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    try:  # what `getrusage` says begins with the memory of the process that started this one
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> bool:
    """Let the peak begin anew from what is held now; return whether the system does that."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True
