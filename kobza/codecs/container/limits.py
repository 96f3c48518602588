"""What unpacking may cost. Every limit is on unless the caller raises it; what a file declares is never trusted."""

from __future__ import annotations

from dataclasses import dataclass

from kobza.codecs.container.errors import LimitExceeded

LARGEST_BLOCK_LOG2 = 24  # 16 MiB, a limit of the format
SMALLEST_BLOCK_LOG2 = 10


@dataclass(frozen=True)
class Limits:
    """What unpacking one file may cost.

    Args:
        output: bytes unpacked in all [bytes].
        ratio: unpacked bytes per packed byte, counted block by block [ratio, 0 switches it off]. It binds only
            past `free`: a kilobyte of zeros packs honestly to far less than a thousandth.
        free: unpacked bytes that need not justify their ratio [bytes].
        memory: working memory of one block, computed before it is allocated [bytes].
        entries: files and folders in an archive [count].
        path: length of a path in an archive, in UTF-8 [bytes].
        depth: folders within folders in an archive [count].
    """

    output: int = 1 << 30
    ratio: int = 1000
    free: int = 64 << 20
    memory: int = 1 << 30
    entries: int = 100_000
    path: int = 4096
    depth: int = 64

    def check_output(self, size: int, packed: int) -> None:
        """Refuse `size` unpacked bytes made of `packed` bytes read so far.

        Raises:
            LimitExceeded: the output or the ratio passes its limit.
        """
        if size > self.output:
            hint = "Raise it if you trust the file: kobza unpack --max-output BYTES."
            raise LimitExceeded(f"unpacking would give at least {size} bytes; the limit is {self.output}.", hint)
        if self.ratio and size > self.free and size > self.ratio * max(packed, 1):
            hint = "Raise it if you trust the file: kobza unpack --max-ratio N (0 for none)."
            message = f"{packed} packed bytes would give {size}: more than {self.ratio} to 1 past {self.free} bytes."
            raise LimitExceeded(message, hint)

    def check_memory(self, needed: int, codec: str) -> None:
        """Refuse a block whose codec would need `needed` bytes of memory.

        Raises:
            LimitExceeded: it is more than `memory`.
        """
        if needed > self.memory:
            hint = "Raise it if you trust the file: kobza unpack --max-memory BYTES."
            message = f"codec {codec!r} would need {needed} bytes of memory; the limit is {self.memory}."
            raise LimitExceeded(message, hint)
