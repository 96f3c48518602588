"""Memory that the process holds: what is taken is seen, and the peak stays when it is given back."""

import numpy as np

from kobza.core import resident


def test_what_is_taken_is_held_and_stays_in_the_peak() -> None:
    size = 64_000_000
    before = resident.held_bytes()
    taken = np.ones(size, np.uint8)
    assert resident.held_bytes() - before > 0.9 * size
    peak = resident.peak_bytes()
    assert peak >= before + 0.9 * size
    del taken
    assert resident.peak_bytes() > 0.99 * peak  # the kernel counts in batches of pages
