"""Opening a model: a name, a hub id, a folder or a file becomes a Model, checked before anything is built of it.

Opening never alters weights: logits equal those of the transformers model bit for bit (opened with the same
`dtype`). The weights are float32 unless asked otherwise, whatever the file stores: every later measurement would
suffer from the rounding of half precision on a CPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kobza.core.errors import BadValue
from kobza.models.sources import Source, find

if TYPE_CHECKING:
    import torch

    from kobza.models.gguf_file import Contents
    from kobza.models.model import Model


def open(  # the verb of the room
    spec: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    convert_pickle: bool = False,
    allow_nonfinite: bool = False,
) -> Model:
    """Open a model.

    Args:
        spec: "smollm2", a hub id "org/name[@revision]", a folder, a file *.safetensors or *.gguf, "folder:file.gguf",
            or "tiny[:family?layers=2&seed=0]", a small random model.
        dtype: type of the weights in memory: "float32" (also for None), "float16", "bfloat16".
        device: where to put them; None is the CPU.
        trust_remote_code: run Python code that comes with the model. Only for sources you trust like your own code.
        convert_pickle: read a pickle checkpoint (*.bin, *.pt), weights only.
        allow_nonfinite: open a model whose weights contain NaN or infinity.

    Returns:
        The model, in evaluation mode, without gradients.

    Raises:
        MissingFile, UnknownName: nothing is there under that name.
        Unsafe: it could run code: a pickle, remote code, a path that leaves its folder.
        Corrupt, Truncated: a header or configuration contradicts itself, its format or the file's length.
        WrongTensors, WrongVocabulary, NotFinite: the parts do not fit each other, or weights are not numbers.
        Unavailable, Offline: what would have to be installed or downloaded.
    """
    wanted = _dtype(dtype)
    if str(spec).partition(":")[0] == "tiny" and not Path(spec).exists():
        return _placed(_tiny(str(spec)), wanted, device)
    source = find(spec)
    return _placed(_open_gguf(source, wanted), wanted, device)


def _dtype(name: Any) -> torch.dtype:
    import torch

    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name is None:
        return torch.float32
    if name in known.values():
        return name  # type: ignore[no-any-return]
    if str(name) not in known:
        raise BadValue(f"dtype must be one of {', '.join(known)}, not {name!r}.")
    return known[str(name)]


def _placed(model: Model, dtype: torch.dtype, device: Any) -> Model:
    if device is not None:
        model.module.to(device)
    return model


def _tiny(spec: str) -> Model:
    from kobza.models.tiny import tiny

    return tiny()


def _open_gguf(source: Source, dtype: torch.dtype) -> Model:
    from kobza.models import cache

    digest = cache.digest_of(source.path)
    contents = cache.load(digest)
    if contents is None:
        contents = _converted(source, digest)
    return _assembled(source, contents, dtype, kind="gguf", digest=digest)


def _converted(source: Source, digest: str) -> Contents:
    from dataclasses import replace

    from kobza.models import building, cache, gguf_file

    contents = gguf_file.read(source.path, source.name)
    building.refuse_nonfinite(contents.tensors, str(source.path))
    reason = cache.store(digest, contents)
    if reason:
        return replace(contents, notes=(*contents.notes, f"not kept in the cache: {reason}"))
    return cache.load(digest) or contents


def _assembled(source: Source, contents: Contents, dtype: torch.dtype, *, kind: str, digest: str) -> Model:
    from kobza.models import building
    from kobza.models.model import Model, Origin

    module = building.build(contents.config, contents.tensors, dtype=dtype, where=str(source.path))
    origin = Origin(
        spec=str(source.spec),
        path=str(source.path),
        licence=contents.licence or source.licence,
        sha256=digest,
        kind=kind,
        notes=contents.notes,
    )
    return Model(source.name, module, contents.tokenizer, origin=origin)
