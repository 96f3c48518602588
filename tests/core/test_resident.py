"""Memory that the process holds: what is taken is seen, and the peak stays when it is given back."""

import mmap

from kobza.core import resident


def test_what_is_taken_is_held_and_stays_in_the_peak() -> None:
    size = 64_000_000
    before = resident.held_bytes()
    taken = mmap.mmap(-1, size)  # fresh pages: an allocator may give out what it held already
    taken.write(bytes(size))
    held = resident.held_bytes()
    assert held - before > 0.9 * size
    peak = resident.peak_bytes()
    assert peak > 0.99 * held  # the kernel counts in batches of pages
    taken.close()
    assert resident.held_bytes() < held - 0.9 * size
    assert resident.peak_bytes() > 0.99 * peak
