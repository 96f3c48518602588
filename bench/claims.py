"""What the cards of three interventions claim, on SmolLM2: attention over long inputs, direct attribution, trace.

    .venv/bin/python bench/claims.py [attention] [dla] [trace]

attention  CPU seconds and peak memory for 1,000 to 8,000 tokens, against all heads' patterns at once as transformers
           hands them out (where 16 GB suffice) and the bytes that tensor would take.
dla        Facts, split into heads and MLPs: how far the sum of the parts is from the logit, and how well a part's
           direct contribution foretells what zeroing it does (Spearman), beside how well its mere size does.
trace      Every site at once: logits bit for bit, time, bytes, the file read back; and what modules of the model put
           out that no site holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

import kobza
from kobza.core.resident import peak_bytes, reset_peak
from kobza.core.texts import text
from kobza.interventions import attention, dla, heads
from kobza.interventions.base import prompt_ids
from kobza.interventions.planner import Run
from kobza.models import sites
from kobza.models.trace import Trace, trace

LENGTHS = (1000, 2000, 4000, 8000)
PEER_LIMIT = 16 << 30  # bytes
HEAD = "18.6"
FACTS = (
    ("The capital of France is", " Paris", " London"),
    ("The capital of England is", " London", " Paris"),
    ("The capital of Japan is", " Tokyo", " Berlin"),
    ("The capital of Germany is", " Berlin", " Tokyo"),
    ("The capital of Italy is", " Rome", " Madrid"),
    ("The capital of Spain is", " Madrid", " Rome"),
    ("The capital of Russia is", " Moscow", " Cairo"),
    ("The capital of Egypt is", " Cairo", " Moscow"),
    ("The opposite of hot is", " cold", " small"),
    ("The opposite of big is", " small", " cold"),
    ("The opposite of good is", " bad", " low"),
    ("The opposite of high is", " low", " bad"),
    ("The day after Monday is", " Tuesday", " Friday"),
    ("The day after Thursday is", " Friday", " Tuesday"),
    ("The color of the sky is", " blue", " green"),
    ("The color of grass is", " green", " blue"),
    ("In France people speak", " French", " German"),
    ("In Germany people speak", " German", " French"),
    ("The largest planet is", " Jupiter", " Mars"),
    ("The Red Planet is called", " Mars", " Jupiter"),
    ("Romeo and", " Juliet", " Eve"),
    ("Adam and", " Eve", " Juliet"),
    ("Water is made of hydrogen and", " oxygen", " carbon"),
    ("The theory of relativity was developed by Albert", " Einstein", " Newton"),
)


# --- attention ---


def attended(kind: str, length: int) -> None:
    """Print seconds, peak bytes and readings of one way, as JSON; runs in a process of its own."""
    model = kobza.open("smollm2")
    ids = model.tokenizer.encode(text("topics", limit=60_000).data, start=True)[:length]
    prompt = model.tokenizer.text(ids[1:])
    heads.patterns(model, ids[:2])  # the weights are in memory from the first run on
    reset_peak()
    base, begin, pictures = peak_bytes(), time.process_time(), 0
    if kind == "ours":
        found = attention.run(model, prompt=prompt, heads=HEAD)
        first, pictures = found.readings[0].value, len(found.tables[0].figures[0].data["values"])
        words = found.tables[0].note
    else:
        with torch.inference_mode():
            first = float(heads.patterns(model, ids)[:, :, 1:, 0].double().mean())
        words = f"{len(ids)} tokens"
    used = {"seconds": time.process_time() - begin, "bytes": peak_bytes() - base}
    print(json.dumps(used | {"first": first, "tiles": pictures, "words": words[:12]}))


def attentions(model: Any) -> None:
    """Print a line per length."""
    H = int(model.config.num_attention_heads)
    for length in LENGTHS:
        whole = 4 * model.layers * H * length**2
        line = [f"{length} tokens: all patterns {whole / 1e9:.2f} GB"]
        for kind in ("ours", "peer"):
            if kind == "peer" and 2 * whole > PEER_LIMIT:  # it is held twice while it is put together
                line.append("peer left out")
                continue
            words = [sys.executable, __file__, "one", kind, str(length)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                line.append(f"{kind} failed: {done.stderr.strip().splitlines()[-1]}")
                continue
            used = json.loads(done.stdout.strip().splitlines()[-1])
            line.append(
                f"{kind} {used['seconds']:.1f} CPU s, {used['bytes'] / 1e9:.2f} GB, to the first {used['first']:.5f}, "
                f"{used['tiles']} tiles ({used['words']})"
            )
        print(" | ".join(line), flush=True)


# --- direct attribution ---


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation."""
    both = torch.tensor([x, y], dtype=torch.float64).argsort(1).argsort(1)
    return float(torch.corrcoef(both.double())[0, 1])


def layer_of(part: str) -> int:
    """The layer in a part's short name: 21 for L21H6 and for `mlp_out.21`."""
    digits = "".join(c if c.isdigit() else " " for c in part).split()
    return int(digits[0])


def attributed(model: Any, prompt: str, metric: str, split: str) -> dict[str, float]:
    """Errors and correlations of one prompt."""
    result = dla.run(model, prompt=prompt, metric=metric, split=split, top=10_000)  # type: ignore[arg-type]
    read = {one.name: one.value for one in result.readings}
    rows = [dict(row) for row in result.tables[0] if row["part"] != "embed"]
    direct, lost = [row["direct"] for row in rows], [-row["without it"] for row in rows]
    found = {"value": read["metric"], "error": abs(read["rest"]), "sum of losses": sum(lost)}
    found["rank"] = spearman(direct, lost)
    found["by size"] = spearman([abs(d) for d in direct], [abs(x) for x in lost])
    for third, name in enumerate(("early", "middle", "late")):
        own = [i for i, row in enumerate(rows) if layer_of(str(row["part"])) * 3 // model.layers == third]
        found[name] = spearman([direct[i] for i in own], [lost[i] for i in own])
    top = sorted(range(len(rows)), key=direct.__getitem__, reverse=True)[:10]
    most = sorted(range(len(rows)), key=lost.__getitem__, reverse=True)[:10]
    found["ten in common"] = len({*top} & {*most})
    found["ten lose"] = sum(lost[i] for i in top) / sum(direct[i] for i in top)
    found["ten of right sign"] = sum(lost[i] > 0 for i in top)
    return found


def attributions(model: Any) -> None:
    """Print means over the facts, by split and metric."""
    known = [fact for fact in FACTS if all(model.tokenizer.id_of(word.encode()) is not None for word in fact[1:])]
    tops = [Run(model, prompt_ids(model, prompt)).top for prompt, *_ in known]
    right = [top == model.tokenizer.id_of(word.encode()) for top, (_, word, _) in zip(tops, known, strict=True)]
    print(f"{len(known)} facts, the answer is the likeliest token of {sum(right)}")
    for split in ("layers", "heads"):
        for metric in ("logit", "diff"):
            told = [f"{metric}:{word}" + f"|{other}" * (metric == "diff") for _, word, other in known]
            found = [attributed(model, fact[0], one, split) for fact, one in zip(known, told, strict=True)]
            shown = [f"{key} {mean(one[key] for one in found):.3f}" for key in found[0] if key != "error"]
            ranks = sorted(one["rank"] for one in found)
            sure = mean(one["rank"] for one, is_top in zip(found, right, strict=True) if is_top)
            print(f"{split}, {metric}: error at most {max(one['error'] for one in found):.1e}; {', '.join(shown)}")
            print(f"  rank from {ranks[0]:.2f} to {ranks[-1]:.2f}, where the answer is on top {sure:.3f}", flush=True)


# --- trace ---


def least(call: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Least CPU seconds, and the last result."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        found = call()
        seconds.append(time.process_time() - begin)
    return min(seconds), found


def outputs(model: Any, ids: Tensor) -> dict[str, list[Tensor]]:
    """Every tensor that any module of the transformers model puts out, by the module's path."""
    found: dict[str, list[Tensor]] = {}

    def keep(path: str) -> Any:
        def hook(_: Any, __: Any, out: Any) -> None:
            parts = out if isinstance(out, tuple) else [getattr(out, "logits", out)]
            found[path] = [part.clone() for part in parts if isinstance(part, Tensor)]

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in model.module.named_modules() if path]
    with torch.inference_mode():
        model.module(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def traced(model: Any) -> None:
    """Print what the trace of everything holds, costs and leaves alone."""
    ids = torch.tensor([model.tokenizer.encode(text("topics", limit=1500).data, start=True)])
    T = ids.shape[1]
    names = sites.names(model)

    @torch.inference_mode()
    def plain() -> Tensor:
        return model.module(input_ids=ids, use_cache=False).logits[0]

    bare, logits = least(plain)
    stream, _ = least(lambda: trace(model, ids[0], ["resid_post"]))
    seconds, found = least(lambda: trace(model, ids[0], names))
    values = sum(value.numel() for value in found.values())
    same = torch.equal(found["logits"], logits)
    print(
        f"{T} tokens, {len(names)} kinds of site, {len(found)} sites, {values:,} values, {4 * values // T:,} B a token"
    )
    print(f"logits the same bits {same}; {seconds / bare:.2f} of a plain pass, the streams alone {stream / bare:.2f}")
    for length in (1, 2, 17, 128):
        short = model.module(input_ids=ids[:, :length], use_cache=False).logits[0]
        same = torch.equal(trace(model, ids[0, :length], names)["logits"], short)
        print(f"  {length} tokens: the same bits {same}")
    with tempfile.TemporaryDirectory() as folder:
        path = found.save(Path(folder) / "all.safetensors")
        back = Trace.load(path)
        same = all(torch.equal(back[site], found[site]) for site in found)
        print(f"file of {path.stat().st_size:,} bytes, every value back {same and list(back) == list(found)}")
    sums = sum(found.stack(name).double().sum(0) for name in ("attn_out", "mlp_out")) + found["embed"].double()
    off = float((sums - found[f"resid_post.{model.layers - 1}"].double()).abs().max() / sums.abs().max())
    print(f"embed + all attn_out + all mlp_out less the last stream: at most {off:.0e} of its largest value")
    unnamed(found, outputs(model, ids))


def unnamed(found: Trace, made: dict[str, list[Tensor]]) -> None:
    """Print the kinds of modules whose output equals, bit for bit, that of no site."""
    held = {hash(value.flatten().numpy().tobytes()) for value in found.values()}
    kinds: Counter[str] = Counter()
    lacking: Counter[str] = Counter()
    for path, tensors in made.items():
        for tensor in tensors:
            kind = ".".join("*" if piece.isdigit() else piece for piece in path.split("."))
            kinds[kind] += 1
            lacking[kind] += hash(tensor.flatten().numpy().tobytes()) not in held
    print(f"modules put out {kinds.total()} tensors; {kinds.total() - lacking.total()} are sites; without a name: "
          + ", ".join(f"{kind} ({count} of {kinds[kind]})" for kind, count in lacking.items() if count))  # fmt: skip


def main() -> None:
    """Run what is named, or all."""
    torch.set_num_threads(1)
    named = sys.argv[1:]
    if named[:1] == ["one"]:
        return attended(named[1], int(named[2]))
    model = kobza.open("smollm2")
    for name, claim in (("trace", traced), ("dla", attributions), ("attention", attentions)):
        if name in named or not named:
            print(f"=== {name}", flush=True)
            claim(model)
    return None


if __name__ == "__main__":
    main()
