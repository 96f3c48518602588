"""Worker processes of a sweep, watched one by one: a dead or stuck one costs the point it had, not the pool.

`concurrent.futures.ProcessPoolExecutor` breaks as a whole when a worker dies, and a spawned `multiprocessing` worker
imports the caller's main module again; so these are plain processes that speak JSON lines (see `worker`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from typing import IO, Any

from kobza.recipes.journal import plain

# a worker finds its modules where this process finds them, whatever the folder or the environment
BEGIN = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from kobza.recipes.worker import main; main()"
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
LAST_WORDS = 400  # characters of a dead worker's standard error that are kept as the reason


@dataclass(eq=False)
class Worker:
    """One process: what it is doing, since when."""

    process: subprocess.Popen[str]
    errors: IO[bytes]
    busy: Any = None
    began: float = 0.0
    is_open: bool = False
    tail: list[Any] = field(default_factory=list)  # points it will take next, so that they share factorizations
    listener: threading.Thread | None = None

    def ask(self, do: str, busy: Any, **request: Any) -> None:
        """Send a request; a dead process is noticed by the pool, not here."""
        self.busy, self.began = busy, time.monotonic()
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.write(plain({"do": do, **request}) + "\n")
            self.process.stdin.flush()

    def last_words(self) -> str:
        """Return the end of what the process wrote to standard error, on one line."""
        with contextlib.suppress(OSError, ValueError):
            size = self.errors.seek(0, os.SEEK_END)
            self.errors.seek(max(0, size - 4 * LAST_WORDS))
            words = self.errors.read().decode("utf-8", errors="replace")
            return " ".join(words.split())[-LAST_WORDS:]
        return ""


class Pool:
    """Processes that start when asked and are gone when the `with` ends, however it ends.

    Args:
        seconds: a point that takes longer is given up and its worker killed [seconds]; 0 for no limit.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.workers: list[Worker] = []
        self._heard: queue.Queue[tuple[Worker, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self.workers):
            self.dismiss(worker)

    def hire(self) -> Worker:
        """Start one more process."""
        environment = {**os.environ, **dict.fromkeys(THREADS, "1"), "PYTHONUNBUFFERED": "1"}
        # the file has no name on the disk: nothing to tidy away
        errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        process = subprocess.Popen(
            [sys.executable, "-c", BEGIN, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal reaches the driver only, which tidies up
        )
        worker = Worker(process, errors)
        self.workers.append(worker)
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        worker.listener.start()
        return worker

    def dismiss(self, worker: Worker) -> None:
        """Kill a process and forget it."""
        self.workers.remove(worker)
        worker.process.kill()
        worker.process.wait()
        if worker.listener is not None:  # it ends with the pipe, which the dead process no longer holds open
            worker.listener.join()
        for stream in (worker.process.stdin, worker.process.stdout, worker.errors):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def hear(self, seconds: float = 0.5) -> tuple[Worker, dict[str, Any]] | None:
        """Return the next answer of a worker, or None after `seconds` of silence.

        A dead worker answers {"dead": reason}; a worker over its time is killed and answers {"late": reason}.
        """
        for worker in self.workers:
            # opening is not limited: it depends on the disk and on what was converted before
            is_at_work = worker.is_open and worker.busy is not None
            if self.seconds and is_at_work and time.monotonic() - worker.began > self.seconds:
                return worker, {"late": f"took longer than {self.seconds:g} s"}
        try:
            worker, said = self._heard.get(timeout=seconds)
        except queue.Empty:
            return None
        if worker not in self.workers:  # dismissed meanwhile
            return None
        return worker, said if said is not None else {"dead": self._death(worker)}

    def _death(self, worker: Worker) -> str:
        code = worker.process.wait()
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        words = worker.last_words()
        return f"its worker {cause}{': ' + words if words else ''}"

    def _listen(self, worker: Worker) -> None:
        assert worker.process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in worker.process.stdout:
                try:
                    said = json.loads(line)
                except ValueError:  # cut off by a kill
                    break
                self._heard.put((worker, said))
        self._heard.put((worker, None))
