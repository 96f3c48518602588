"""Codes and scales: packed without loss, equal to their formula, saved and opened again with the bytes they claim."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

import kobza
from kobza.core.errors import BadValue, OutOfRange, WrongTensors
from kobza.models import forward, quantized
from kobza.models.model import Change
from kobza.models.quantized import Quantized, pack, packed_bytes, rotated, unpack

CHANGE = Change("test")
IDS = torch.arange(40, 60)[None]


def example(M: int, N: int, *, bits: int = 3, block: int = 8, **extra: Any) -> Quantized:
    draw = torch.Generator().manual_seed(M * N)
    codes = torch.randint(0, 2**bits, (M, N), generator=draw).to(torch.uint8)
    groups = math.ceil(N / block)
    tensors = {
        "codes": pack(codes, "unsigned", bits),
        "scales": torch.rand(M, groups, generator=draw).half() * 0.1,
        "offsets": torch.randn(M, groups, generator=draw).half() * 0.1,
    }
    return Quantized((M, N), "unsigned", bits, block, tensors | extra)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.integers(1, 8))
def test_unpacking_undoes_packing_and_takes_the_bits_it_says(values: list[int], bits: int) -> None:
    codes = torch.tensor([v % 2**bits for v in values], dtype=torch.uint8)
    packed = pack(codes, "unsigned", bits)
    assert packed.nbytes == packed_bytes("unsigned", bits, len(values)) == math.ceil(len(values) * bits / 8)
    assert torch.equal(unpack(packed, "unsigned", bits, len(values)), codes)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_five_ternary_codes_share_a_byte(values: list[int]) -> None:
    codes = torch.tensor(values, dtype=torch.uint8)
    packed = pack(codes, "ternary", 2)
    assert packed.nbytes == math.ceil(len(values) / 5)
    assert torch.equal(unpack(packed, "ternary", 2, len(values)), codes)


def test_the_levels_of_nf4_are_quantiles_of_the_normal_distribution() -> None:
    """QLoRA, appendix E: both halves evenly spaced in probability, from an offset of 0.9677083 to 1/2."""
    positive = norm.ppf(np.linspace(0.9677083, 0.5, 9))[:-1]
    negative = -norm.ppf(np.linspace(0.9677083, 0.5, 8))[:-1]
    values = np.sort([*positive, 0.0, *negative])
    assert np.allclose(values / values.max(), quantized.NF4, atol=2e-6)


def test_dense_equals_the_formula_entry_by_entry() -> None:
    given = example(5, 20)
    codes, scales, offsets = given.codes(), given.tensors["scales"].float(), given.tensors["offsets"].float()
    W = given.dense()
    for m in range(5):
        for n in range(20):
            assert W[m, n] == codes[m, n] * scales[m, n // 8] + offsets[m, n // 8]


def test_columns_signs_and_outliers_come_after_the_scales() -> None:
    plain = example(4, 16)
    signs = torch.tensor([1, -1] * 8, dtype=torch.int8)
    columns = torch.linspace(0.5, 2, 16).half()
    kept = {
        "outlier_counts": torch.tensor([0, 1, 0, 1], dtype=torch.int32),
        "outlier_columns": torch.tensor([3, 15], dtype=torch.int16),
        "outlier_values": torch.tensor([7.0, -9.0]).half(),
    }
    W = example(4, 16, signs=signs, columns=columns, **kept).dense()
    wanted = rotated(plain.dense()) * signs * columns.float()
    wanted[1, 3], wanted[3, 15] = 7, -9
    assert torch.allclose(W, wanted)


def test_a_rotation_is_orthonormal_and_its_own_inverse() -> None:
    X = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotated(rotated(X)), X, atol=1e-5)
    assert torch.allclose(rotated(X).norm(dim=1), X.norm(dim=1), rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_quantized_model_computes_what_its_dense_twin_computes(family: str) -> None:
    model = kobza.open(f"tiny:{family}?layers=2&seed=0")
    names = [n for n in model.find("blocks.*") if len(model.matrices[n].shape) == 2] + ["embed"]
    codes = {name: example(*model.matrix(name).shape) for name in names}
    stored = model.replace(codes, change=CHANGE)
    dense = model.replace({name: value.dense() for name, value in codes.items()}, change=CHANGE)
    assert torch.equal(forward.logits(stored, IDS), forward.logits(dense, IDS))
    assert stored.parameters == model.parameters
    assert stored.dtype == torch.float32
    assert stored.is_tied
    assert all(stored.matrices[name].stored_as == "codes" for name in names if name != "embed")
    assert stored.stored_bytes < dense.stored_bytes
    again = stored.replace({"blocks.0.mlp.down": model.matrix("blocks.0.mlp.down")}, change=CHANGE)
    assert torch.equal(again.matrix("blocks.0.mlp.down"), model.matrix("blocks.0.mlp.down"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_saved_it_takes_the_bytes_it_claims_and_opens_the_same(family: str, tmp_path: Any) -> None:
    model = kobza.open(f"tiny:{family}?layers=2&seed=0")
    names = [n for n in model.find("blocks.*.mlp") if len(model.matrices[n].shape) == 2] + ["embed"]
    edited = model.replace({name: example(*model.matrix(name).shape) for name in names}, change=CHANGE)
    saved = edited.save(tmp_path / "coded")
    (file,) = (tmp_path / "coded").glob("*.safetensors")
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - 8 - header == edited.stored_bytes == saved.stored_bytes
    assert not saved.opens_in_transformers
    again = kobza.open(tmp_path / "coded")
    assert again.fingerprint == edited.fingerprint
    assert again.stored_bytes == edited.stored_bytes
    assert torch.equal(forward.logits(again, IDS), forward.logits(edited, IDS))
    edited.save(tmp_path / "dense", dense=True)
    dense = kobza.open(tmp_path / "dense")
    assert torch.equal(forward.logits(dense, IDS), forward.logits(edited, IDS))
    assert dense.stored_bytes == model.stored_bytes


def test_codes_that_do_not_fit_are_refused_before_they_are_used() -> None:
    good = example(4, 16)
    layout = json.loads(good.layout())
    for wrong in ({"shape": [4, 17]}, {"bits": 9}, {"kind": "q"}, {"block": 0}, {"shape": [0, 16]}):
        with pytest.raises(WrongTensors, match="do not fit"):
            Quantized.read(json.dumps(layout | wrong), good.tensors)
    with pytest.raises(WrongTensors):
        Quantized.read(good.layout(), {"codes": good.tensors["codes"]})
    far = {
        "outlier_counts": torch.tensor([1, 0, 0, 0], dtype=torch.int32),
        "outlier_columns": torch.tensor([16], dtype=torch.int16),
        "outlier_values": torch.ones(1).half(),
    }
    with pytest.raises(WrongTensors, match="outside"):
        Quantized.read(good.layout(), dict(good.tensors) | far)
    with pytest.raises(OutOfRange, match="9 bits"):
        quantized.levels("unsigned", 9)


def test_a_vector_cannot_be_stored_as_codes(tiny: Any) -> None:
    with pytest.raises(BadValue, match="codes and scales"):
        kobza.open("tiny:opt?layers=1").replace({"embed.positions": example(2050, 32)}, change=CHANGE)
