"""Two processes train as one: equal losses, rows of one batch shared, and a lost rank's work taken up again."""

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.errors import OutOfRange
from kobza.models.tiny import byte_tokenizer
from kobza.training import scratch
from kobza.training.parts.ranks import Ranks

TEXT = b"the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 20
HOW: dict[str, Any] = {
    "kind": "classic", "size": 1, "width": 32, "heads": 2, "context": 16, "batch": 4, "evaluate": 2,
    "precision": "float32", "schedule": "constant",
}  # fmt: skip


def trained(steps: int, folder: str = "") -> list[float]:
    torch.set_num_threads(1)
    run = scratch.train(byte_tokenizer(), TEXT, steps=steps, folder=folder, **HOW)
    return [row["loss"] for row in run.history][1:] + [row["held"] for row in run.history]


def one_of_two(rank: int, port: int, steps: int, folder: str, report: Any) -> None:
    """Be one rank, as torchrun starts it."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = trained(steps, folder)
    if rank == 0:
        report.send(found)
    torch.distributed.destroy_process_group()


def both(steps: int, folder: str = "") -> list[float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kobza.training.scratch", "transformers.models.gpt2.modeling_gpt2"])
    ours, theirs = context.Pipe()
    processes = [context.Process(target=one_of_two, args=(r, port, steps, folder, theirs)) for r in range(2)]
    for process in processes:
        process.start()
    assert ours.poll(90)
    found: list[float] = ours.recv()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    return found


@pytest.mark.slow
def test_two_ranks_give_the_losses_of_one_and_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    alone = trained(6)
    assert both(6) == pytest.approx(alone, abs=1e-4)
    both(4, str(tmp_path))
    assert both(6, str(tmp_path)) == pytest.approx(alone, abs=1e-4)


def test_a_batch_is_shared_by_rows_in_tuples_and_dicts() -> None:
    rows = torch.arange(8).reshape(4, 2)
    second = Ranks(1, 2)
    assert second.part(rows).tolist() == [[4, 5], [6, 7]]
    assert second.part((rows, {"a": rows}))[1]["a"].tolist() == [[4, 5], [6, 7]]
    assert Ranks().part(rows) is rows
    with pytest.raises(OutOfRange, match="batch of 3"):
        second.part(rows[:3])
