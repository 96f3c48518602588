"""pack, unpack, ls, verify, bench as a user types them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kobza.codecs import bz2
from tests.cli.conftest import Kobza, Said

TEXT = b"Reve ta stohne Dnipr shyrokyi.\r\n" * 200 + b"\xff<s>\0"


def rows_of(said: Said) -> list[dict[str, Any]]:
    assert said.code == 0, said.err
    return [json.loads(line) for line in said.out.splitlines()]


@pytest.fixture
def poem(kobza: Kobza) -> Path:
    Path("poem.txt").write_bytes(TEXT)
    return Path("poem.txt")


@pytest.mark.parametrize("codec", ["cm", "ulz:level=9", "bpez:is_global=true", "store", "lzma:level=0"])
def test_a_file_comes_back_under_its_name(kobza: Kobza, poem: Path, codec: str) -> None:
    packed = kobza("pack", "poem.txt", "--codec", codec)
    assert packed.code == 0, packed.err
    assert f"{len(TEXT)} -> {Path('poem.txt.kbz').stat().st_size} bytes" in packed.out
    poem.unlink()
    assert kobza("unpack poem.txt.kbz").code == 0
    assert poem.read_bytes() == TEXT


def test_a_folder_comes_back_and_is_listed(kobza: Kobza, poem: Path) -> None:
    Path("songs").mkdir()
    Path("songs/one").write_bytes(TEXT)
    assert kobza("pack songs poem.txt -c zlib -o all.kbz").code == 0
    rows = rows_of(kobza("ls all.kbz --jsonl"))
    assert [(row["path"], row["kind"]) for row in rows] == [
        ("songs", "folder"),
        ("songs/one", "file"),
        ("poem.txt", "file"),
    ]
    assert kobza("unpack all.kbz -o out").code == 0
    assert Path("out/songs/one").read_bytes() == Path("out/poem.txt").read_bytes() == TEXT
    again = kobza("unpack all.kbz -o out")
    assert (again.code, "not empty" in again.err) == (4, True)


def test_blocks_of_a_stream_are_listed(kobza: Kobza, poem: Path) -> None:
    kobza("pack poem.txt -c zlib")
    (row,) = rows_of(kobza("ls poem.txt.kbz --jsonl"))
    assert (row["codec"], row["raw"]) == ("zlib", len(TEXT))


def test_what_exists_is_replaced_only_by_force(kobza: Kobza, poem: Path) -> None:
    kobza("pack poem.txt")
    for words in ("pack poem.txt", "unpack poem.txt.kbz"):
        refused = kobza(words)
        assert refused.code == 4
        assert "--force" in refused.err
        assert kobza(f"{words} --force").code == 0


def test_a_cut_or_damaged_file_leaves_nothing(kobza: Kobza, poem: Path) -> None:
    kobza("pack poem.txt -c ulz")
    whole = Path("poem.txt.kbz").read_bytes()
    for damaged in (whole[:-1], whole[:60], whole[:70] + b"\x55" + whole[71:], b"", b"PK\3\4...."):
        Path("bad.kbz").write_bytes(damaged)
        for words in ("unpack bad.kbz -o out", "verify bad.kbz"):
            refused = kobza(words)
            assert refused.code == 3, refused.err
            assert "Traceback" not in refused.err
            assert not Path("out").exists()


def test_limits_are_options(kobza: Kobza) -> None:
    Path("zeros.kbz").write_bytes(bz2.compress(bytes(1 << 20)))
    refused = kobza("unpack zeros.kbz -o out --max-output 1000000")
    assert refused.code == 4
    assert "1048576 bytes; the limit is 1000000" in refused.err
    assert kobza("unpack zeros.kbz -o out --max-memory 1000").code == 4
    assert kobza("verify zeros.kbz").code == 0


def test_a_misspelled_codec_or_option_names_the_nearest(kobza: Kobza, poem: Path) -> None:
    assert "'ulz'" in kobza("pack poem.txt -c ulzz").err
    assert "'level'" in kobza("pack poem.txt -c ulz:levl=3").err
    assert kobza("pack poem.txt -c ulz:level=12").code == 2
    assert kobza("pack nowhere.txt").code == 2


def test_bench_tells_three_sizes_of_a_model_s_codec(poem: Path) -> None:
    from kobza.cli import packed

    model, plain = packed.bench([poem], ["lm", "zlib"], 300, "tiny").rows
    assert model["round trip"] == "same bytes"
    assert model["ideal"] > 0
    assert model["with model"] > model["packed"]
    assert plain["ideal"] is None


def test_bench_says_that_the_bytes_came_back(kobza: Kobza, poem: Path) -> None:
    rows = rows_of(kobza("bench poem.txt -c zlib -c cm -c bpez --jsonl"))
    assert [row["codec"] for row in rows] == ["zlib", "cm", "bpez"]
    assert all(row["round trip"] == "same bytes" and row["packed"] < len(TEXT) / 10 for row in rows)


def test_a_model_packs_and_gives_back_any_bytes(tiny: object, kobza: Kobza, poem: Path) -> None:
    Path("short").write_bytes(TEXT[-80:])
    packed = kobza("pack short -c lm --model tiny")
    assert packed.code == 0, packed.err
    assert "ideal code length by the model" in packed.out
    assert "lm (model " in kobza("ls short.kbz").out
    assert kobza("verify short.kbz --model tiny").code == 0
    assert kobza("unpack short.kbz -o back --model tiny").code == 0
    assert Path("back").read_bytes() == TEXT[-80:]


def test_a_folder_packed_by_a_model_is_listed_without_it(tiny: object, kobza: Kobza) -> None:
    Path("songs").mkdir()
    Path("songs/one").write_bytes(TEXT[-80:])
    assert kobza("pack songs -c lm+cm -o all.kbz --model tiny").code == 0
    assert [row["path"] for row in rows_of(kobza("ls all.kbz --jsonl"))] == ["songs", "songs/one"]
    assert kobza("unpack all.kbz -o out --model tiny").code == 0
    assert Path("out/songs/one").read_bytes() == TEXT[-80:]


def test_a_file_of_another_model_is_refused(tiny: object, kobza: Kobza) -> None:
    Path("line").write_bytes(b"the same line\n" * 30)
    assert kobza("pack line -c lm --model tiny").code == 0
    other = kobza("unpack line.kbz -o out --model tiny:gpt2")
    assert (other.code, "ModelMismatch" in other.err, Path("out").exists()) == (3, True, False)


def test_tokens_pack_and_give_back_files_and_folders(tiny: object, kobza: Kobza, poem: Path) -> None:
    Path("poem.txt.kbz").write_bytes(b"another file")
    for words in ("poem.txt -o one.kbz", "poem.txt poem.txt.kbz -o both.kbz"):
        packed = kobza(f"pack {words} -c tok:second=lzma --model tiny")
        assert packed.code == 0, packed.err
        assert kobza(f"verify {words.split()[-1]} --model tiny").code == 0
    assert kobza("unpack one.kbz -o back --model tiny").code == 0
    assert Path("back").read_bytes() == TEXT


@pytest.mark.skipif(shutil.which("zpaq") is None, reason="the program zpaq is not installed: apt-get install zpaq")
def test_zpaq_keeps_versions(kobza: Kobza, poem: Path) -> None:
    assert kobza("pack poem.txt -c zpaq:method=1").code == 0
    poem.write_bytes(TEXT + b"more")
    assert kobza("pack poem.txt -c zpaq").code == 0
    assert [row["version"] for row in rows_of(kobza("ls poem.txt.zpaq --versions --jsonl"))] == [1, 2]
    assert kobza("unpack poem.txt.zpaq --until 1 -o old").code == 0
    assert Path("old/poem.txt").read_bytes() == TEXT
    assert f"whole: {len(TEXT) + 4} bytes" in kobza("verify poem.txt.zpaq").out
    (row,) = rows_of(kobza("bench poem.txt -c zpaq --jsonl"))
    assert row["round trip"] == "same bytes"
    assert kobza("pack poem.txt -c zpaq -o x.kbz").code == 2


def test_explain_counts_the_bits_of_every_token(tiny: object, kobza: Kobza, poem: Path) -> None:
    rows = rows_of(kobza("explain poem.txt --model tiny --limit 60 --jsonl"))
    assert "".join(row["token"] for row in rows).startswith("Reve")
    assert all(row["bits"] > 0 for row in rows)
