"""Training: steps of the poems GPT against the notebook loop, the loss of the head in pieces, steps against the peers.

    .venv/bin/python bench/training.py [PYTHON OF AN ENVIRONMENT WITH TRL AND PEFT] [TABLE ...] [--page]

Tables: poems, head, foresight, module (the same module by a plain loop, transformers' Trainer and kobza), trl. Ratios
are those of one table. --page puts the tables into docs/training.md.

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
from _training_peer import peak_MB
from torch import nn

PAGE = Path(__file__).parents[1] / "docs" / "training.md"
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
    peak = peak_MB() * 1024
    report.send((min(times), (peak - before) / 1024, peak / 1024, getattr(step, "value", None)))


def apart(make: str, *arguments: Any, rounds: int = ROUNDS) -> tuple[float, float, float, Any]:
    """Measure in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=measured, args=(make, arguments, rounds, there))
    process.start()
    found: tuple[float, float, float, Any] = here.recv()
    process.join()
    return found


Rows = list[tuple[str, ...]]


def table(head: tuple[str, ...], rows: Rows) -> str:
    """Return a table as Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def poems() -> str:
    """Return the table of the poems GPT."""
    rows = [
        ("the plain notebook loop, 200,019 ids", apart("notebook", IDS)),
        ("kobza, 200,019 ids, bfloat16", apart("ours", IDS)),
        ("kobza, 200,019 ids, bfloat16, sparse table", apart("ours", IDS, torch.bfloat16, True)),
        ("the notebook loop, 5,038 ids", apart("notebook", TRIMMED)),
        ("kobza, 5,038 ids, float32", apart("ours", TRIMMED, torch.float32, rounds=10)),
        ("kobza, 5,038 ids, bfloat16", apart("ours", TRIMMED, rounds=10)),
    ]
    last = rows[-1][1][0]
    told = [(name, f"{s:.3f}", f"{peak:,.0f}", f"{s / last:.1f}") for name, (s, _, peak, _) in rows]
    return table(("poems GPT, 12 x 256, 8 x 32 tokens", "CPU s a step", "peak MB", "times the last"), told)


def pieces() -> str:
    """Return the table of the head's loss."""
    plain, own = apart("head_loss", "plain", rounds=1), apart("head_loss", "pieces", rounds=1)
    weight = IDS * D * 4 / 2**20
    rows = [
        (name, f"{seconds:.2f}", f"{extra - weight:,.0f}", f"{loss:.6f}", f"{seconds / plain[0]:.2f}")
        for name, (seconds, extra, _, loss) in (("all logits", plain), ("in pieces", own))
    ]
    return table(
        ("head and loss, 1,024 x 200,019", "CPU s", "MB beside the gradient", "loss", "times all logits"), rows
    )


def asked(python: str, who: str, work: str, folder: Path) -> dict[str, Any]:
    """Return what a piece of training took in a process of its own.

    Raises:
        SystemExit: it failed; with the end of what it said.
    """
    script = Path(__file__).with_name("_training_peer.py")
    how = [python, "-W", "ignore", str(script), who, work, str(folder)]
    shown = subprocess.run(how, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise SystemExit(f"{who} {work}: {shown.stderr[-800:]}")
    return dict(json.loads(shown.stdout.splitlines()[-1]))


def same_module(peer: str, place: Path) -> str:
    """Return the table of one GPT-2 on the same batches: a plain loop, transformers' Trainer and kobza."""
    from transformers import AutoModelForCausalLM, GPT2Config

    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": TRIMMED, "n_positions": T, "n_embd": D, "n_layer": N, "n_head": H}
    marks = {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GPT2Config(**sizes, **none, **marks)).save_pretrained(place)
    (place / "batches.json").write_text(json.dumps({"ids": TRIMMED, "batch": B, "length": T}))
    every = (
        ("a plain loop", "plain", peer),
        ("transformers.Trainer", "trainer", peer),
        ("kobza", "kobza", sys.executable),
    )
    rows: Rows = []
    for precision in ("float32", "bfloat16"):
        found = {name: asked(python, who, precision, place) for name, who, python in every}
        first = found["kobza"]
        for name, seen in found.items():
            apart_ = max(abs(a - b) for a, b in zip(seen["losses"], first["losses"], strict=True))
            shares = f"{seen['step'] / first['step']:.2f}", f"{seen['peak_MB']:,.0f}"
            losses = f"{seen['losses'][0]:.4f}", f"{seen['losses'][-1]:.4f}", f"{apart_:.0e}"
            rows.append((f"{name}, {precision}", f"{seen['step']:.3f}", *shares, *losses))
    head = ("the same GPT-2, the same 20 batches", "CPU s a step", "times kobza", "peak MB")
    return table((*head, "first loss", "last loss", "largest difference from kobza"), rows)


WORKS = {
    "sft": "SFT, LoRA 8", "dpo": "DPO, all weights", "orpo": "ORPO, all weights", "grpo": "GRPO, LoRA 8",
}  # fmt: skip


def against_trl(peer: str, place: Path) -> str:
    """Return the table of five steps on SmolLM2 by kobza and by TRL."""
    import kobza

    kobza.open("smollm2").save(place)
    rows: Rows = []
    for work, name in WORKS.items():
        own, theirs = asked(sys.executable, "kobza", work, place), asked(peer, "trl", work, place)
        seconds = [f"{found['cpu_seconds']:.1f}" for found in (own, theirs)]
        memory = [f"{found['peak_MB']:,.0f}" for found in (own, theirs)]
        merged = [f"{found['peak_merged_MB']:,.0f}" for found in (own, theirs)]
        losses = [f"{found['losses'][0]:.4f}, {found['losses'][-1]:.4f}" for found in (own, theirs)]
        share = f"{own['cpu_seconds'] / theirs['cpu_seconds']:.2f}"
        rows.append((name, " / ".join(seconds), share, " / ".join(memory), " / ".join(merged), " / ".join(losses)))
        if "drawing" in own:
            drawn = [found["drawing"] for found in (own, theirs)]
            rest = [found["cpu_seconds"] - found["drawing"] for found in (own, theirs)]
            rows += [_part("of it drawing 4 x 32 tokens", drawn), _part("of it scores and update", rest)]
    head = ("SmolLM2 135M, five steps, kobza / TRL", "CPU s", "kobza over TRL", "peak MB of the steps")
    return table((*head, "peak MB with the adapter merged", "losses, first and last"), rows)


def _part(name: str, seconds: list[float]) -> tuple[str, ...]:
    return (name, f"{seconds[0]:.1f} / {seconds[1]:.1f}", f"{seconds[0] / seconds[1]:.2f}", "", "", "")


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


def foresight() -> str:
    """Return what was foreseen beside what happened; the weights are there before the measurement begins."""
    rows: Rows = []
    for kind, layers, width, *rest in SIZES:
        seconds, extra, _, told = apart("sized", kind, layers, width, *rest, rounds=6)
        foreseen, memory = told or (0.0, 0.0)
        time_ = (f"{1e3 * seconds:.1f}", f"{1e3 * foreseen:.1f}", f"{seconds / foreseen:.2f}")
        rows.append((f"{kind} {layers} x {width}", *time_, f"{extra:.0f}", f"{memory:.0f}", f"{extra / memory:.2f}"))
    return table(("model", "CPU ms a step", "foreseen", "ratio", "MB", "foreseen", "ratio"), rows)


def put(name: str, made: str) -> None:
    """Write a table between its marks into the page."""
    begin, end = f"<!-- {name}: made by bench/training.py -->", f"<!-- end of {name} -->"
    before, mark, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    if not mark:
        raise SystemExit(f"{PAGE} has no place for {name!r}: {begin} ... {end}")
    PAGE.write_text(f"{before}{begin}\n{made}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> None:
    """Print the tables that were named, all if none was; with --page write them into the page."""
    names = [word for word in sys.argv[1:] if word in TABLES]
    peers = [word for word in sys.argv[1:] if word not in TABLES and word != "--page"]
    for name in names or TABLES:
        if name in PEERS and not peers:
            print(f"{name}: skipped, no environment with TRL was named")
            continue
        with tempfile.TemporaryDirectory() as folder:
            made = TABLES[name](peers[0], Path(folder)) if name in PEERS else TABLES[name]()
        print(f"{made}\n", flush=True)
        if "--page" in sys.argv:
            put(name, made)


PEERS = ("module", "trl")  # tables that need the environment
TABLES: dict[str, Callable[..., str]] = {
    "poems": poems, "head": pieces, "foresight": foresight, "module": same_module, "trl": against_trl,
}  # fmt: skip


if __name__ == "__main__":
    main()
