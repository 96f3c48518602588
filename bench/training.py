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


def ours(ids: int, precision: torch.dtype = torch.bfloat16, sparse: bool = False) -> Callable[[], None]:
    """Return a step of kobza's loop on a vocabulary of so many ids."""
    from kobza.training import base
    from kobza.training.parts import classic, optimizers, tables
    from kobza.training.parts.losses import mean_loss

    class Vocabulary(list[None]):
        start_id = end_id = None

    module = classic.build("classic", classic.Sizes(N, D, H, H, 4 * D, T), Vocabulary([None] * ids), seed=0)  # type: ignore[arg-type]
    if sparse:
        tables.spare(module)
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


def measured(make: str, arguments: tuple[Any, ...], rounds: int, is_plain: bool, report: Any) -> None:
    """Report CPU seconds of a step (the least of several), the peak above the start, the peak, and a value."""
    torch.set_num_threads(1)
    if is_plain:  # what transformers imports where the development extras are installed, and kobza does not need
        sys.modules |= dict.fromkeys(("scipy", "sklearn"))  # type: ignore[arg-type]
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


def apart(make: str, *arguments: Any, rounds: int = ROUNDS, is_plain: bool = False) -> tuple[float, float, float, Any]:
    """Measure in a process of its own, if asked as in an environment without scipy and scikit-learn."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measured, args=(make, arguments, rounds, is_plain, there))
    process.start()
    found: tuple[float, float, float, Any] = here.recv()
    process.join()
    return found


def poems() -> None:
    """Print the table of the poems GPT."""
    rows = [
        ("the plain notebook loop, 200,019 ids", apart("notebook", IDS)),
        ("kobza, 200,019 ids, bfloat16", apart("ours", IDS)),
        ("kobza, 200,019 ids, bfloat16, sparse table", apart("ours", IDS, torch.bfloat16, True)),
        ("the notebook loop, 5,038 ids", apart("notebook", TRIMMED)),
        ("kobza, 5,038 ids, float32", apart("ours", TRIMMED, torch.float32, rounds=10)),
        ("the same without scipy (not required)", apart("ours", TRIMMED, rounds=10, is_plain=True)),
        ("kobza, 5,038 ids, bfloat16", apart("ours", TRIMMED, rounds=10)),
    ]
    last = rows[-1][1][0]
    for name, (seconds, _, peak, _) in rows:
        print(f"{name:42} {seconds:7.3f} CPU s/step  {peak:6.0f} MB  {seconds / last:5.1f}x")


def pieces() -> None:
    """Print the table of the head's loss."""
    plain, own = apart("head_loss", "plain", rounds=1), apart("head_loss", "pieces", rounds=1)
    for name, (seconds, extra, _, loss) in (("all logits", plain), ("in pieces", own)):
        table = IDS * D * 4 / 2**20
        beside = extra - table
        print(f"head and loss, {name:12} {seconds:6.2f} CPU s  {beside:6.0f} MB beside the gradient  loss {loss:.6f}")
    print(f"  time {own[0] / plain[0]:.2f}x, loss differs by {abs((own[3] or 0) - (plain[3] or 0)):.1e}")


SIZES = [
    ("llama", 1, 32, 2, 16, 4, 300, torch.float32), ("llama", 2, 64, 2, 128, 8, 512, torch.float32),
    ("free", 4, 64, 4, 64, 8, 512, torch.bfloat16), ("llama", 4, 256, 4, 128, 8, 2048, torch.bfloat16),
    ("classic", 12, 256, 8, 32, 8, 5038, torch.bfloat16), ("llama", 8, 512, 8, 128, 4, 8192, torch.bfloat16),
]  # fmt: skip


def sized(
    kind: str, layers: int, width: int, heads: int, length: int, batch: int, ids: int, dtype: Any
) -> Callable[[], None]:
    """Return a step of a model of these sizes; its value is what was foreseen, in seconds and MB."""
    from kobza.models import free
    from kobza.training import base
    from kobza.training.parts import classic, optimizers, sizing
    from kobza.training.parts.losses import mean_loss

    class Vocabulary(list[None]):
        start_id = end_id = None

    inner = 4 * width if kind == "classic" else 32 * -(-8 * width // 96)
    sizes = classic.Sizes(layers, width, heads, heads, inner, length)
    form = free.form() if kind == "free" else None
    module = classic.build(kind, sizes, Vocabulary([None] * ids), seed=0, form=form)  # type: ignore[arg-type]
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    foreseen = sizing.predict(module, tokens=batch * length, optimizer="adamw", precision=dtype, context=length)
    optimizer = optimizers.build("adamw", named, rate=1e-3, decay=0.0, betas=(0.9, 0.999))
    weights = sizing.tensor_bytes([p for _, p in named]) / 2**20

    def step() -> None:
        rows = torch.randint(ids, (batch, length + 1))
        optimizer.zero_grad()
        with base.autocast(dtype):
            loss, _ = mean_loss(module, rows[:, :-1], rows[:, 1:])
        loss.backward()
        optimizers.clip([p for _, p in named], 1.0)
        optimizer.step()

    step.value = (foreseen.seconds, foreseen.bytes / 2**20 - weights)  # type: ignore[attr-defined]
    return step


def foresight() -> None:
    """Print what was foreseen beside what happened; the weights are there before the measurement begins."""
    for kind, layers, width, *rest in SIZES:
        seconds, extra, _, told = apart("sized", kind, layers, width, *rest, rounds=6)
        foreseen, memory = told or (0.0, 0.0)
        time_ = f"{1e3 * seconds:7.1f} CPU ms, foreseen {1e3 * foreseen:7.1f} ({seconds / foreseen:.2f}x)"
        space = f"{extra:5.0f} MB, foreseen {memory:5.0f} ({extra / memory:.2f}x)"
        print(f"{kind:8}{layers:3} x {width:3}  {time_}  {space}")


def main() -> None:
    """Print all tables."""
    poems()
    pieces()
    foresight()
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
