"""Giving memory back to the system while tensors stay as they are: those mapped from a file are read again when needed.

Source: madvise(2), MADV_PAGEOUT, Linux 5.4 and later: clean pages of a file are dropped, pages that were written to are
never lost. Elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

_PAGEOUT = 21  # of asm-generic/mman-common.h
_MAPS = Path("/proc/self/maps")


def rest(tensors: Iterable[Tensor]) -> int:
    """Give back the memory of tensors that are mapped from a file; return how many bytes that were [count, 0 ..].

    The tensors keep their values, also where these were changed in memory. Reading them again costs what reading the
    file costs, so it is for weights that are not needed soon.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        mapped = _mapped()
    except OSError:
        return 0
    starts = [begin for begin, _ in mapped]
    libc = ctypes.CDLL(None)
    given = 0
    for tensor in tensors:
        at = tensor.data_ptr()
        begin = -(-at // mmap.PAGESIZE) * mmap.PAGESIZE  # a page shared with a neighbor stays
        size = (at + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
        place = bisect_right(starts, at) - 1
        if size <= 0 or place < 0 or at + tensor.nbytes > mapped[place][1]:
            continue
        failed = libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), _PAGEOUT)
        given += 0 if failed else size
    return given


def _mapped() -> list[tuple[int, int]]:
    """Return where files are mapped into memory: (begin, end) of each, ascending."""
    found = []
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        span, _, _, _, file, *path = line.split(maxsplit=5)
        if file != "0" and path:  # the number of the file: 0 is memory without one
            begin, _, end = span.partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found
