"""A table written and read back is the same table."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kobza.core.errors import CannotWrite, Corrupt, EmptyText, MissingFile, NotFinite
from kobza.embeddings import extract
from kobza.embeddings.base import Vectors, vectors_of


def test_a_table_comes_back_bit_for_bit(tiny, tmp_path):
    path = extract.save(tiny, tmp_path / "table.safetensors")
    back = extract.load(path)
    assert torch.equal(back.matrix, tiny.matrix("embed.in"))
    assert back.labels == vectors_of(tiny).labels
    assert back.special == vectors_of(tiny).special
    assert torch.equal(back[" t"], vectors_of(tiny)[" t"])


def test_every_text_of_a_token_finds_its_row_in_the_file(tiny, tmp_path):
    vectors = vectors_of(tiny)
    back = extract.load(extract.save(tiny, tmp_path / "table.safetensors"))
    texts = [text for text in map(chr, range(128)) if text in vectors]
    assert {" ", "\n", "\t", "\0"} <= set(texts)
    assert back.rows(texts) == vectors.rows(texts)
    assert "\ud800" not in back, "half a character is no token"


def test_the_file_says_where_it_came_from(tiny, tmp_path):
    path = extract.save(tiny, tmp_path / "table.safetensors")
    with safe_open(path, "pt") as file:
        assert file.metadata()["name"] == "tiny:llama embed.in"
        assert list(file.keys()) == ["vectors"]


def test_lookup_gives_the_rows_of_the_text(tiny):
    rows = extract.lookup(tiny, "the kobza")
    ids = tiny.tokenizer.encode("the kobza")
    assert torch.equal(rows, tiny.module.get_input_embeddings()(torch.tensor(ids)))


def test_the_table_of_a_text_has_a_row_per_token(tiny):
    found = extract.table(tiny, text="the kobza")
    assert found["id"] == tiny.tokenizer.encode("the kobza")
    assert found["norm"] == pytest.approx(torch.linalg.vector_norm(extract.lookup(tiny, "the kobza"), dim=1).tolist())


def test_the_table_is_described_and_written(tiny, tmp_path):
    row = extract.table(tiny, file=str(tmp_path / "t.safetensors"))[0]
    assert (row["rows"], row["width"], row["bytes"]) == (300, 32, 38400)
    assert (tmp_path / "t.safetensors").is_file()


def test_a_tensor_that_cannot_be_written_leaves_nothing(tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWrite):
        extract.save(tiny, tmp_path / "file" / "t.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_no_file_is_an_error(tmp_path):
    with pytest.raises(MissingFile, match=r"no file '.*none.safetensors'\nWrite one with: kobza look"):
        extract.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_file_of_another_kind_is_corrupt(tmp_path, content):
    (tmp_path / "t.safetensors").write_bytes(content)
    with pytest.raises(Corrupt, match=r"t\.safetensors is no table of vectors"):
        extract.load(tmp_path / "t.safetensors")


def test_labels_that_do_not_fit_are_refused(tmp_path):
    save_file({"vectors": torch.zeros(3, 2)}, tmp_path / "t.safetensors", metadata={"labels": '["a"]', "special": "[]"})
    with pytest.raises(Corrupt, match=r"1 labels for a tensor of shape \(3, 2\)"):
        extract.load(tmp_path / "t.safetensors")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    extract.save(Vectors(torch.tensor([[1.0, torch.nan]]), ["a"], name="made"), tmp_path / "t.safetensors")
    with pytest.raises(NotFinite):
        extract.load(tmp_path / "t.safetensors")


def test_an_empty_text_is_refused(tiny):
    with pytest.raises(EmptyText):
        extract.lookup(tiny, "")
