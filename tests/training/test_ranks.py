"""Two processes train as one: equal losses, rows of one batch shared, and a lost rank's work taken up again."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kobza.core.errors import BadValue, OutOfRange
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


def rank_that_may_die(report: str, folder: str, sharded: str) -> None:
    """Be one of torchrun's ranks; the second one is killed at step 3 of the first attempt."""
    from kobza.core.progress import listen

    steps = 0

    def die(task: Any) -> None:
        nonlocal steps
        steps = max(steps, task.done)
        if steps >= 1 and list(Path(folder).glob("step-*2")):
            os.kill(os.getpid(), signal.SIGKILL)

    is_doomed = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "1"
    torch.set_num_threads(1)
    with listen(die if is_doomed else None):
        run = scratch.train(byte_tokenizer(), TEXT, steps=6, folder=folder, sharded=sharded == "sharded", **HOW)
    weights = {name: float(p.detach().double().sum()) for name, p in run.model.module.named_parameters()}
    facts = {"types": sorted({type(m).__name__ for m in run.model.module.modules()}), "weights": weights}
    facts |= {"losses": [row["loss"] for row in run.history][1:] + [row["held"] for row in run.history]}
    facts |= {"state": run.facts["optimizer_state_bytes"], "attempt": os.environ["TORCHELASTIC_RESTART_COUNT"]}
    if os.environ["RANK"] == "0":
        Path(report).write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_run_that_loses_a_rank_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    alone = scratch.train(byte_tokenizer(), TEXT, steps=6, folder=str(tmp_path / "alone"), **HOW)
    report, folder = tmp_path / "report.json", tmp_path / "run"
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1", "--standalone"]
    found = subprocess.run(
        [sys.executable, *command, __file__, str(report), str(folder), "sharded"],
        capture_output=True, text=True, timeout=170, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-3000:]
    said = json.loads(report.read_text())
    assert said["attempt"] == "1"
    losses = [row["loss"] for row in alone.history][1:] + [row["held"] for row in alone.history]
    assert said["losses"] == pytest.approx(losses, abs=1e-4)
    right = {name: float(p.detach().double().sum()) for name, p in alone.model.module.named_parameters()}
    assert said["weights"] == pytest.approx(right, abs=1e-2)
    assert said["types"] == sorted({type(m).__name__ for m in alone.model.module.modules()}), "plain again"
    assert said["state"] < 0.6 * alone.facts["optimizer_state_bytes"], "each rank keeps its half"
    again = scratch.train(byte_tokenizer(), TEXT, steps=8, folder=str(folder), **HOW)
    assert again.facts["steps"] == 8, "one process goes on from what two have written"


def test_other_optimizers_are_not_sharded() -> None:
    with pytest.raises(BadValue, match="whole matrices"):
        scratch.train(byte_tokenizer(), TEXT, steps=2, sharded=True, optimizer="muon", **HOW)


def test_a_batch_is_shared_by_rows_in_tuples_and_dicts() -> None:
    rows = torch.arange(8).reshape(4, 2)
    second = Ranks(1, 2)
    assert second.part(rows).tolist() == [[4, 5], [6, 7]]
    assert second.part((rows, {"a": rows}))[1]["a"].tolist() == [[4, 5], [6, 7]]
    assert Ranks().part(rows) is rows
    with pytest.raises(OutOfRange, match="batch of 3"):
        second.part(rows[:3])


if __name__ == "__main__":
    rank_that_may_die(*sys.argv[1:])
