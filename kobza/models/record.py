"""What kobza writes beside a saved model (`kobza.json`): where it came from, what was changed, what is factored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kobza.core.errors import Corrupt, WrongTensors
from kobza.models import replacing
from kobza.models.factored import Factors
from kobza.models.model import Change, Model, Origin, Value
from kobza.models.quantized import ROLES, Quantized

FILE = "kobza.json"
SCHEMA = "kobza.model/1"
LARGEST = 16 << 20  # bytes of a record; a long history of edits is some kilobytes


@dataclass(frozen=True)
class Record:
    """The content of `kobza.json`.

    Attributes:
        name: of the model.
        origin: of the model before its first change.
        changes: the edits, oldest first.
        fingerprint: SHA-256 over the weights.
        stored_bytes: tensor bytes written.
        is_tied: whether both ends are one tensor.
        weights: file names of the weights.
        factored: name of a matrix -> {"A": tensor name, "B": tensor name, "weight": name of their product}; of a
            quantized one -> {"layout": see `Quantized.layout`, "codes": tensor name, "scales": ..., "weight": ...}.
        repeated: path of a block that is stored under another -> path of that other.
    """

    name: str
    origin: Origin
    changes: tuple[Change, ...]
    fingerprint: str
    stored_bytes: int
    is_tied: bool
    weights: tuple[str, ...] = ()
    factored: dict[str, dict[str, str]] = field(default_factory=dict)
    repeated: dict[str, str] = field(default_factory=dict)

    @property
    def is_own(self) -> bool:
        """Whether the weights are stored in a form that only kobza reads."""
        return bool(self.factored or self.repeated)

    def to_json(self) -> str:
        """Return the text of the file."""
        from kobza import __version__

        return json.dumps({"schema": SCHEMA, "kobza": __version__, **asdict(self)}, indent=1) + "\n"

    def unfactored(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the checkpoint with factors multiplied, codes decoded and blocks repeated, as transformers expects it.

        Raises:
            WrongTensors: a factor is missing or the two do not fit.
        """
        dense = dict(tensors)
        floats = next((t.dtype for t in tensors.values() if t.dtype == torch.bfloat16), torch.float32)
        for name, at in self.factored.items():
            value = self.value(name, tensors)
            for role in ("A", "B", *ROLES):
                dense.pop(at.get(role, ""), None)
            product = value.dense() if isinstance(value, Quantized) else value.A.float() @ value.B.float()
            dtype = floats if isinstance(value, Quantized) else value.A.dtype
            dense[at["weight"]] = (product.T if at.get("is_transposed") else product).to(dtype)
        for path, first in self.repeated.items():
            own = [name for name in dense if name.startswith(f"{first}.")]
            dense |= {path + name.removeprefix(first): dense[name] for name in own}
        return dense

    def value(self, name: str, tensors: Mapping[str, Tensor]) -> Factors | Quantized:
        """Return a factored or quantized matrix, its tensors as they are in the file.

        Raises:
            WrongTensors: a tensor is missing, or they do not fit each other.
        """
        at = self.factored[name]
        if "layout" in at:
            roles = [role for role in ROLES if role in at]
            if any(at[role] not in tensors for role in roles):
                raise WrongTensors(f"the codes or scales of {name!r} are missing.")
            return Quantized.read(at["layout"], {role: tensors[at[role]] for role in roles})
        A, B = tensors.get(at["A"]), tensors.get(at["B"])
        if A is None or B is None or A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
            raise WrongTensors(f"the factors of {name!r} are missing or do not fit each other.")
        return Factors(A, B)

    def restored(self, model: Model, tensors: Mapping[str, Tensor]) -> Model:
        """Return the model, built from `unfactored` tensors, with its factors, history and origin put back."""
        origin = replace(self.origin, notes=(*self.origin.notes, f"read back from {model.origin.path}"))
        if origin.kind == "trained" and not self.changes:  # nothing else opens it: commands name what was opened here
            origin = replace(origin, spec=model.origin.spec, notes=(self.origin.spec, *origin.notes))
        module = model.module
        if self.is_own:
            module = replacing.shared_copy(module)
            for name in self.factored:
                matrix = model.matrices["embed.in" if name == "embed" else name]
                value: Value = self.value(name, tensors)
                if isinstance(value, Factors):
                    value = Factors(value.A.to(model.dtype), value.B.to(model.dtype))
                replacing.put(module, matrix, value)
                if name == "embed":
                    replacing.tie_ends(module, model.family.modules["embed.in"], model.family.modules["embed.out"])
            self._share_factors(module)
            for path, first in self.repeated.items():
                if {path, first} - {f"{model.family.blocks}.{layer}" for layer in range(model.layers)}:
                    raise WrongTensors(f"{path!r} is said to repeat {first!r}, and one of them is no block.")
                replacing.repeat_block(module, path, first)
        return Model(model.name, module, model.tokenizer, origin=origin, family=model.family, changes=self.changes)

    def _share_factors(self, module: Any) -> None:
        """Let matrices whose factors are one tensor in the file share it again."""
        known: dict[str, Any] = {}
        for at in self.factored.values():
            part = module.get_submodule(at["weight"].rpartition(".")[0])
            for role in {"A", "B"} & at.keys():
                setattr(part, role, known.setdefault(at[role], getattr(part, role)))


def read(folder: str | Path) -> Record | None:
    """Return the record of a folder that kobza saved; None for any other folder.

    Raises:
        Corrupt: the file is there but is not a record.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    try:
        if len(data) > LARGEST:
            raise ValueError("too long")
        return _parsed(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Corrupt(f"'{path}' is not a record of a saved model: {error}.", "Delete it to open the rest.") from None


def _parsed(data: dict[str, Any]) -> Record:
    if data["schema"] != SCHEMA:
        raise ValueError(f"schema {data['schema']!r} instead of {SCHEMA!r}")
    origin = Origin(**{**data["origin"], "notes": tuple(data["origin"]["notes"])})
    changes = tuple(Change.from_json(change) for change in data["changes"])
    factored = {str(name): {str(k): v for k, v in at.items()} for name, at in data["factored"].items()}
    return Record(
        name=str(data["name"]),
        origin=origin,
        changes=changes,
        fingerprint=str(data["fingerprint"]),
        stored_bytes=int(data["stored_bytes"]),
        is_tied=bool(data["is_tied"]),
        weights=tuple(map(str, data["weights"])),
        factored=factored,
        repeated={str(path): str(first) for path, first in data.get("repeated", {}).items()},
    )
