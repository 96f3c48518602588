"""The model card (README.md) of a saved model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence

from kobza.core.options import Step, spell
from kobza.models.building import FREE
from kobza.models.model import Change, Model
from kobza.models.replacing import repeated_blocks


def text(model: Model, statement: str, readings: Sequence[str] = (), library: str = "") -> str:
    """Return the card: a header that model hubs read, then origin, licence, changes and how to open it.

    Args:
        model: the model that was saved.
        statement: one sentence on what opens the folder.
        readings: lines on what was measured.
        library: what opens it, for the header; "" for transformers, or kobza where matrices are factors or codes.
    """
    origin = model.origin
    lines = ["---"]
    if origin.licence:
        lines.append(f"license: {_scalar(origin.licence)}")
    lines += [f"base_model: {_scalar(origin.spec)}"] if origin.kind != "random" else []
    is_own = (
        is_free(model)
        or bool(repeated_blocks(model.module, model.family.blocks))
        or any(matrix.stored_as != "dense" for matrix in model.matrices.values())
    )
    lines += [
        f"library_name: {library or ('kobza' if is_own else 'transformers')}",
        "pipeline_tag: text-generation",
        "tags: [kobza]",
        "---",
        "",
    ]
    lines += [f"# {model.name}", "", _summary(model, library), "", statement, "", "## Origin", ""]
    lines += [f"- opened as `{origin.spec}`" + (f" ({origin.kind})" if origin.kind else "")]
    lines += [f"- SHA-256 of the original weights: `{origin.sha256}`"] if origin.sha256 else []
    lines += [f"- licence: {origin.licence or 'not stated by the original; ask its authors before passing it on'}"]
    lines += [f"- {note}" for note in origin.notes]
    lines += ["", "## Changes", ""]
    lines += [_change(i, change) for i, change in enumerate(model.changes, 1)] or [
        "None: the weights are the original's."
    ]
    lines += ["", "Again: `" + _again(model) + "`"] if model.changes else []
    lines += ["", "## Readings", "", *(f"- {line}" for line in readings)] if readings else []
    ends = "one tensor (tied)" if model.is_tied else "two tensors (`tie_word_embeddings: false`)"
    lines += ["", "## Weights", "", f"- input and output embedding: {ends}"]
    lines += [f"- {model.parameters:,} parameters, {model.stored_bytes:,} bytes"]
    lines += [f"- fingerprint (SHA-256 over all tensors): `{model.fingerprint}`", ""]
    return "\n".join(lines)


def is_free(model: Model) -> bool:
    """Whether a model is of kobza's own family, which transformers does not know."""
    return bool(model.module.config.model_type == FREE)


def _again(model: Model) -> str:
    """The chain of edits as one line, as the command line takes it."""
    steps = [Step(c.technique, c.options | ({} if c.seed is None else {"seed": c.seed})) for c in model.changes]
    return f"kobza edit {shlex.quote(model.origin.spec)} " + " ".join(shlex.quote(spell(step)) for step in steps)


def _summary(model: Model, library: str) -> str:
    edits = len(model.changes)
    what = f"with {edits} change{'s' if edits != 1 else ''}" if edits else "unchanged"
    more = "" if library else " The same as plain data: `kobza.json`."
    return f"{model.origin.spec}, {what}, written by kobza.{more}"


def _change(number: int, change: Change) -> str:
    options = ", ".join(f"{name} = {value}" for name, value in change.options.items())
    shown = ", ".join(change.matrices[:4]) + (f", ... ({len(change.matrices)})" if len(change.matrices) > 4 else "")
    seed = "" if change.seed is None else f", seed {change.seed}"
    return f"{number}. **{change.technique}** ({options or 'no options'}{seed}) on {shown or 'nothing'}: {change.kind}"


def _scalar(value: str) -> str:
    """Return a string as a YAML scalar (JSON strings are YAML)."""
    return value if value.replace("-", "").replace(".", "").isalnum() else json.dumps(value)
