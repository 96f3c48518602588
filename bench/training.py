"""Training: a step of the poems GPT against the plain notebook loop, the head's loss in pieces, and steps against TRL.

    .venv/bin/python bench/training.py [PYTHON OF AN ENVIRONMENT WITH TRL]

The notebook loop has one linear layer per head, masks by hand, AdamW without fusion, float32 and all 200,019 ids. CPU
seconds of one thread; peak memory is that of a process of its own. Wanted: 20x per step against the notebook loop, 10x
against the whole vocabulary with every other trick, at most 0.6 GB; the loss in pieces at most 1.3x the plain time.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

IDS, TRIMMED, D, H, N, T, B = 200_019, 5_038, 256, 8, 12, 32, 8
ROUNDS = 4


class Head(nn.Module):
    """One head of attention as tutorials write it."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(D, D // H, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(T, T)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, q, v = self.key(x), self.query(x), self.value(x)
        weights = (q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5).masked_fill(self.tril == 0, float("-inf"))
        return weights.softmax(-1) @ v  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.proj = nn.ModuleList(Head() for _ in range(H)), nn.Linear(D, D)
        self.mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.ReLU(), nn.Linear(4 * D, D))
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norm1(x)
        x = x + self.proj(torch.cat([head(n) for head in self.heads], -1))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def notebook(ids: int) -> Callable[[], None]:
    """Return a step of the plain loop."""
    tokens, places = nn.Embedding(ids, D), nn.Embedding(T, D)
    blocks, norm, head = nn.Sequential(*(Block() for _ in range(N))), nn.LayerNorm(D), nn.Linear(D, ids)
    optimizer = torch.optim.AdamW([p for m in (tokens, places, blocks, norm, head) for p in m.parameters()], lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        rows = torch.randint(ids, (B, T + 1), generator=generator)
        logits = head(norm(blocks(tokens(rows[:, :-1]) + places(torch.arange(T)))))
        loss = nn.functional.cross_entropy(logits.view(B * T, ids), rows[:, 1:].reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def ours(ids: int, precision: torch.dtype = torch.bfloat16) -> Callable[[], None]:
    """Return a step of kobza's loop on a vocabulary of so many ids."""
    from kobza.training import base
    from kobza.training.parts import classic, optimizers
    from kobza.training.parts.losses import mean_loss

    class Vocabulary(list[None]):
        start_id = end_id = None

    module = classic.build("classic", classic.Sizes(N, D, H, H, 4 * D, T), Vocabulary([None] * ids), seed=0)  # type: ignore[arg-type]
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    optimizer = optimizers.build("adamw", named, rate=1e-3, decay=0.01, betas=(0.9, 0.999))
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        rows = torch.randint(ids, (B, T + 1), generator=generator)
        optimizer.zero_grad()
        with base.autocast(precision):
            loss, _ = mean_loss(module, rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizer.step()

    return step


def plain_loss(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the loss with all logits at once."""
    return nn.functional.cross_entropy(states @ weight.T, targets)


def head_loss(way: str) -> Callable[[], None]:
    """Return a forward and backward pass of the head at 1,024 x 200,019."""
    from kobza.training.parts.losses import linear_cross_entropy

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1024, D, generator=generator, requires_grad=True)
    weight = torch.randn(IDS, D, generator=generator).mul_(0.05).requires_grad_()  # in place: no peak of its own
    targets = torch.randint(IDS, (1024,), generator=generator)
    held: list[float] = []

    def step() -> None:
        states.grad = weight.grad = None
        loss = (
            plain_loss(states, weight, targets) if way == "plain" else linear_cross_entropy(states, weight, targets)[0]
        )
        loss.backward()
        held.append(loss.item())
        step.value = held[-1]  # type: ignore[attr-defined]

    return step


def measured(make: str, arguments: tuple[Any, ...], rounds: int, report: Any) -> None:
    """Report CPU seconds of a step (the least of several), the peak above the start, the peak, and a value."""
    torch.set_num_threads(1)
    step = globals()[make](*arguments)
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    step()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report.send((min(times), (peak - before) / 1024, peak / 1024, getattr(step, "value", None)))


def apart(make: str, *arguments: Any, rounds: int = ROUNDS) -> tuple[float, float, float, float | None]:
    """Measure in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measured, args=(make, arguments, rounds, there))
    process.start()
    found: tuple[float, float, float, float | None] = here.recv()
    process.join()
    return found


def poems() -> None:
    """Print the table of the poems GPT."""
    rows = [
        ("the plain notebook loop, 200,019 ids", apart("notebook", IDS)),
        ("kobza, 200,019 ids, bfloat16", apart("ours", IDS)),
        ("the notebook loop, 5,038 ids", apart("notebook", TRIMMED)),
        ("kobza, 5,038 ids, float32", apart("ours", TRIMMED, torch.float32, rounds=10)),
        ("kobza, 5,038 ids, bfloat16", apart("ours", TRIMMED, rounds=10)),
    ]
    last = rows[-1][1][0]
    for name, (seconds, _, peak, _) in rows:
        print(f"{name:40} {seconds:7.3f} CPU s/step  {peak:6.0f} MB  {seconds / last:5.1f}x")


def pieces() -> None:
    """Print the table of the head's loss."""
    plain, own = apart("head_loss", "plain", rounds=1), apart("head_loss", "pieces", rounds=1)
    for name, (seconds, extra, _, loss) in (("all logits", plain), ("in pieces", own)):
        table = IDS * D * 4 / 2**20
        beside = extra - table
        print(f"head and loss, {name:12} {seconds:6.2f} CPU s  {beside:6.0f} MB beside the gradient  loss {loss:.6f}")
    print(f"  time {own[0] / plain[0]:.2f}x, loss differs by {abs((own[3] or 0) - (plain[3] or 0)):.1e}")


def main() -> None:
    """Print all tables."""
    poems()
    pieces()
    peer = sys.argv[1] if len(sys.argv) > 1 else ""
    if not peer:
        print("steps against TRL: skipped, no environment with TRL was named")
        return
    import kobza

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "smollm2")
        kobza.open("smollm2").save(place)
        for objective in ("sft", "dpo", "orpo"):
            script = Path(__file__).with_name("_training_peer.py")
            found = []
            for python, who in ((sys.executable, "kobza"), (peer, "trl")):
                shown = subprocess.run(
                    [python, "-W", "ignore", str(script), who, objective, str(place)], capture_output=True, text=True
                )
                found.append(
                    json.loads(shown.stdout.splitlines()[-1]) if shown.stdout else {"error": shown.stderr[-400:]}
                )
            print(objective, *found)


if __name__ == "__main__":
    main()
