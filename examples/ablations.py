"""The debated parts of a block, one at a time: held-out bits per byte at equal parameters and equal multiplications.

python examples/ablations.py [TEXT FOLDER [GROUP ...]]

A model of 4 x 64 learns the last 110,000 characters of TEXT with a vocabulary of 512 ids. Every variant gets the MLP
width that brings it to the parameters of the base, and as many steps as bring it to the multiplications of the base;
two seeds each. What one seed says about another (pooled over all variants) gives the interval. The rate is the same for
all and was tuned for none. FOLDER keeps every run (results.json); the same words go on. Without a TEXT: a few steps.
"""

import json
import statistics
import sys
from pathlib import Path

import torch

import kobza
from kobza.core import options
from kobza.core.files import write_atomic
from kobza.core.table import Table
from kobza.core.texts import text
from kobza.models import building, free
from kobza.tokens import pairs
from kobza.training import scratch
from kobza.training.parts import corpus

is_full = len(sys.argv) > 2
STEPS, SEEDS, CONTEXT, BATCH = (200, 2, 64, 8) if is_full else (2, 2, 16, 2)
Z = 1.96  # 97.5 % of the normal distribution
BASE = {"layers": 4, "width": 64, "heads": 4, "inner": 168, "tied": True}
GROUPS: dict[str, dict[str, dict[str, object]]] = {
    "base": {"base": {}},
    "norm": {"LayerNorm": {"form": "norm=layer"}, "no norm": {"form": "norm=none"}},
    "positions": {
        **{word: {"form": f"position={word}"} for word in ("learned", "alibi", "none")},
        **{f"{p} x {f}": {"form": f"position={p},factor={f}"} for p in ("rope", "alibi", "learned") for f in (0.25, 4)},
    },
    "sharing K, V": {
        "one K": {"form": "key_heads=1"},
        "one V": {"form": "value_heads=1"},
        "one K, one V": {"form": "key_heads=1,value_heads=1"},
    },
    "heads": {f"{n} heads": {"heads": n} for n in (1, 2, 8, 16)},
    "scores": {"normalized": {"form": "scores=normed"}},
    "MLP": {
        "ReLU": {"form": "mlp=relu"}, "GELU": {"form": "mlp=gelu"},
        "wide stream, narrow MLP": {"width": 80}, "narrow stream, wide MLP": {"width": 48},
    },
    "depth": {"2 x 88": {"layers": 2, "width": 88}, "8 x 48": {"layers": 8, "width": 48}},
    "unequal blocks": {
        "MLP tapers": {"form": "taper=0.5"}, "MLP widens": {"form": "taper=-0.5"},
        "state, attention": {"form": "mixers=state+attention"}, "FFT, attention": {"form": "mixers=fft+attention"},
    },
    "tying": {"untied": {"tied": False}},
    "shared layers": {"2 distinct": {"form": "distinct=2"}, "1 distinct": {"form": "distinct=1"}},
    "context": {"loss from place 8": {"skip": 8}, "loss from place 32": {"skip": 32}},
    "ahead": {"2 tokens": {"ahead": 2}, "4 tokens": {"ahead": 4}},
    "experts": {
        "4, one active": {"form": "experts=4"},
        "4, one active, no balance": {"form": "experts=4,balance=0"},
        "4, two active": {"form": "experts=4,active=2"},
    },
    "mixers": {"FFT": {"form": "mixers=fft"}, "state space": {"form": "mixers=state"}},
    "table": {"2,048 ids, trained": {"tied": False}, "2,048 ids, frozen": {"tied": False, "frozen": True}},
}  # fmt: skip


def config(how: dict[str, object], ids: int) -> free.FreeConfig:
    """Return the configuration that the options of a variant stand for."""
    words = str(how.get("form", ""))
    parts = free.form(**options.check(free.form, options.parse(f"form:{words}" if words else "form").options))
    sizes = {
        "vocab_size": ids, "hidden_size": how["width"], "num_hidden_layers": how["layers"],
        "num_attention_heads": how["heads"], "intermediate_size": how["inner"], "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": how["tied"],
    }  # fmt: skip
    return building.configuration({"model_type": free.FAMILY, **sizes, **parts})


def fitted(how: dict[str, object], ids: int, base: free.FreeConfig) -> tuple[dict[str, object], free.FreeConfig, int]:
    """Return a variant with the MLP width that fits, its configuration, and its steps."""
    wanted = free.parameters(base)
    inners = range(8, 1200, 2)
    best = min(inners, key=lambda n: abs(free.parameters(config(how | {"inner": n}, ids)) - wanted))
    how = how | {"inner": best}
    made = config(how, ids)
    further = (int(str(how.get("ahead", 1))) - 1) * (int(str(how["width"])) ** 2 + int(str(how["width"])) * ids)
    cost = free.multiplications(made, CONTEXT) + further
    return how, made, max(1, round(STEPS * free.multiplications(base, CONTEXT) / cost))


def routing(module: torch.nn.Module, model: kobza.Model, data: bytes) -> dict[str, object]:
    """Return the load of every router's experts over a text, and the norm of the router's gradient."""
    ids = torch.tensor(model.tokenizer.encode(data)[: CONTEXT * BATCH * 8]).reshape(-1, CONTEXT)
    with torch.enable_grad():
        module.requires_grad_(True)
        logits = module(input_ids=ids[:, :-1]).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].reshape(-1)).backward()
    found = free.routers(module)
    gradients = [float(slope.norm()) if slope is not None else None for _, slope in found]
    return {"load": [load.tolist() for load, _ in found], "gradient": gradients}


def measured(group: str, name: str, seed: int) -> dict[str, object]:
    """Train one variant with one seed."""
    own = pairs.train(part.train, size=512, special=(), pattern="gpt2") if is_full else kobza.vocabulary("bytes")
    given = kobza.open("kobzar") if group == "table" else own
    reader = given.tokenizer if isinstance(given, kobza.Model) else given
    ids = len(reader)
    base = config({**BASE, "tied": group != "table"}, ids)
    how, made, steps = fitted({**BASE, **GROUPS[group][name]}, ids, base)
    run = scratch.train(
        given, data, kind="free", context=CONTEXT, batch=BATCH, steps=steps, rate=3e-3, warmup=20, evaluate=10 * STEPS,
        precision="float32", trim=False, seed=seed, **how,
    )  # fmt: skip
    row: dict[str, object] = {"group": group, "name": name, "seed": seed, "inner": how["inner"], "steps": steps}
    row |= {"parameters": run.model.parameters, "multiplications": free.multiplications(made, CONTEXT)}
    row |= {"held": run.history["held"][-1], "loss": run.history["loss"][-1], "seconds": run.facts["seconds"]}
    if made.experts > 1:
        row |= routing(run.model.module, run.model, part.held)
    return row


def student(n: int) -> float:
    """Return the 97.5 % quantile of Student's t with n degrees of freedom (Abramowitz & Stegun 26.7.5)."""
    return Z + (Z**3 + Z) / (4 * n) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * n * n)


def table(rows: list[dict[str, object]]) -> Table:
    """Return means over seeds and differences from the base (of its own vocabulary), with intervals."""
    found: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in rows:
        found.setdefault((str(row["group"]), str(row["name"])), []).append(row)
    held = {key: [float(str(row["held"])) for row in of] for key, of in found.items()}
    spreads = [statistics.variance(values) for values in held.values() if len(values) > 1]
    deviation = statistics.mean(spreads) ** 0.5
    out = []
    for (group, name), values in held.items():
        base = held.get(("table", "2,048 ids, trained") if group == "table" else ("base", "base"), values)
        change = statistics.mean(values) - statistics.mean(base)
        wide = student(len(spreads)) * deviation * (1 / len(values) + 1 / len(base)) ** 0.5
        first = found[group, name][0]
        sure = "" if abs(change) <= wide else "worse" if change > 0 else "better"
        out.append({
            "what": group, "variant": name, "F": first["inner"], "steps": first["steps"],
            "parameters": first["parameters"], "held": statistics.mean(values),
            "seeds": " ".join(f"{v:.3f}" for v in values),
            "change": change, "+-": wide, "verdict": sure,
        })  # fmt: skip
    note = f"standard deviation between seeds, pooled over {len(spreads)} variants: {deviation:.4f} bit/B"
    return Table(out, units={"held": "bit/B", "change": "bit/B", "+-": "bit/B"}, title="Ablations", note=note)


source, folder = (sys.argv[1], Path(sys.argv[2])) if is_full else ("topics[:8000]", None)
data = text(source).data.decode("utf-8-sig")[-110_000:].encode()
part = corpus.split(corpus.documents(data)[0])
keep = None if folder is None else folder / "results.json"
done = json.loads(keep.read_text()) if keep and keep.exists() else []
for group in sys.argv[3:] or (list(GROUPS) if is_full else ["base", "norm", "experts"]):
    for name in GROUPS[group]:
        for seed in range(SEEDS):
            if not any((row["group"], row["name"], row["seed"]) == (group, name, seed) for row in done):
                done.append(measured(group, name, seed))
                print(*done[-1].values(), flush=True)
                if keep is not None:
                    keep.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(keep, json.dumps(done, indent=0))
print(table(done))
for row in done:
    if "load" in row and row["seed"] == 0:
        shown = [" ".join(f"{share:.2f}" for share in of) for of in row["load"]]
        print(row["name"], "load:", " | ".join(shown), "router gradients:", *(f"{g:.4f}" for g in row["gradient"]))
