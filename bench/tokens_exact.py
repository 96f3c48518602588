"""Every published id and count, and 10,000 random texts a vocabulary, against the libraries themselves.

    python bench/tokens_exact.py            # KOBZA_DATA names the folder of vocabularies and texts

The texts mix emoji, line ends, NUL, names of control tokens, letters of all of Unicode; one in three has bytes that are
not UTF-8. The libraries take strings only: what is valid between such bytes must have their ids, each such byte the id
that the library gives to that byte, and the library's own decoding must give the text back. Where the library loses
characters (SmolLM2 has no token for 21 bytes) a refusal is wanted. Exits with 1 if anything differs.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

import kobza
from kobza.core.errors import BadValue, WrongVocabulary
from kobza.core.table import Table
from kobza.tokens import pairs
from kobza.tokens.alphabet import byte_to_character

DATA = Path(os.environ.get("KOBZA_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
COUNT = 10_000
PARTS = (
    "🙂", "👩‍🚀", "\r\n", "\n", "\x00", " ", "   ", "\t", "<|endoftext|>", "<|begin_of_text|>", "<|im_start|>", "<s>",
    "</s>", "<0x0A>", "'s", "'LL", "123", "4567", "the", " The", "Реве", " стогне", "海", "e\u0301", "\u0130", "\u00a0",
    "\u2028", "!?", "_", "//", "Ǆ", "٣", "½", "\ufeff",
)  # fmt: skip
POEM = "Реве та стогне Дніпр широкий"
PANI, KATY = "Who is Pani Puri?", "Who is Katy Perry?"
OCEAN = "The oceans and the seas are filled with salty water, cried the earth."
PUBLISHED = (  # the data folder's README
    ("o200k_base", POEM, "4647 4333 327 6572 3242 1443 3907 5117 6774 9501 187104"),
    ("llama-3", POEM, "34604 33742 1532 100344 18868 14837 79862 39903 123058 2233 112781 44938"),
    ("llama-3", PANI, "15546 374 393 5676 393 6198 30"),
    ("llama-3", KATY, "15546 374 73227 31421 30"),
    ("llama-3", OCEAN, "791 54280 323 279 52840 527 10409 449 74975 3090 11 39169 279 9578 13"),
    ("mistral-7b-v0.1", PANI, "1 6526 349 367 4499 367 6395 28804"),
    ("mistral-7b-v0.1", KATY, "1 6526 349 14294 28724 24150 28804"),
)


@dataclass(frozen=True)
class Library:
    """An encoder that is not ours.

    Attributes:
        whole: ids of a string at the beginning of a text; `inner`: of one inside it.
        byte: id of a single byte, or None.
        decode: bytes of ids.
    """

    whole: Callable[[str], list[int]]
    inner: Callable[[str], list[int]]
    byte: Callable[[int], int | None]
    decode: Callable[[list[int]], bytes]


def ranked(name: str) -> Library:
    """tiktoken with its own reader of the file and, where the package has one, its own pattern."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe
    from tiktoken_ext import openai_public

    patterns = {"r50k_base": openai_public.r50k_pat_str, "o200k_base": _o200k(openai_public)}
    cl100k = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )  # as Llama 3 publishes it; cl100k_base has the same
    ranks = load_tiktoken_bpe(str(DATA / "tokenizers" / f"{name}.tiktoken"))
    library = tiktoken.Encoding(name, pat_str=patterns.get(name, cl100k), mergeable_ranks=ranks, special_tokens={})
    encode = library.encode_ordinary
    return Library(encode, encode, lambda b: library.encode_single_token(bytes([b])), library.decode_bytes)


def _o200k(module: Any) -> str:
    """The pattern inside tiktoken's function, which would fetch its ranks from the network."""
    kept = module.load_tiktoken_bpe
    module.load_tiktoken_bpe = lambda *_, **__: {}
    try:
        return str(module.o200k_base()["pat_str"])
    finally:
        module.load_tiktoken_bpe = kept


def pieced(name: str) -> Library:
    """sentencepiece. The inside of a text is encoded behind a line end, with which no piece of the model is joined."""
    import sentencepiece

    whole = sentencepiece.SentencePieceProcessor(model_file=str(DATA / "tokenizers" / f"{name}.model"))
    lead = whole.encode("\n")

    def inner(text: str) -> list[int]:
        ids = whole.encode(f"\n{text}")
        assert ids[: len(lead)] == lead, text
        return list(ids[len(lead) :])

    def decode(ids: list[int]) -> bytes:
        pieces = [bytes([int(p[3:5], 16)]) if whole.is_byte(i) else p.replace("\u2581", " ").encode()
                  for i, p in ((i, whole.id_to_piece(i)) for i in ids)]  # fmt: skip
        return b"".join(pieces).removeprefix(b" ")

    return Library(whole.encode, inner, lambda b: whole.piece_to_id(f"<0x{b:02X}>"), decode)


def smollm2() -> Library:
    """The `tokenizers` object that transformers makes of SmolLM2's GGUF file."""
    from transformers import AutoTokenizer

    from kobza.models import sources

    path = Path(sources.find("smollm2").path)
    file = path if path.is_file() else next(path.glob("*.gguf"))
    backend = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).backend_tokenizer
    backend.encode_special_tokens = True
    table, back = byte_to_character(), {c: b for b, c in byte_to_character().items()}

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    def decode(ids: list[int]) -> bytes:
        return bytes(back[c] for id in ids for c in backend.id_to_token(id))

    return Library(encode, encode, lambda byte: backend.token_to_id(table[byte]), decode)


def texts(count: int, seed: int) -> Iterator[bytes]:
    """Yield random texts; one in three has bytes that are not UTF-8."""
    draw = random.Random(seed)
    for _ in range(count):
        parts = [draw.choice(PARTS) if draw.random() < 0.7 else _letter(draw) for _ in range(draw.randrange(1, 12))]
        data = "".join(parts).encode()
        if draw.random() < 1 / 3:
            at = draw.randrange(len(data) + 1)
            data = data[:at] + draw.choice([b"\xff", b"\x80", b"\xd0", b"\xe2\x82", draw.randbytes(3)]) + data[at:]
        yield data


def _letter(draw: random.Random) -> str:
    code = draw.choice([draw.randrange(128), draw.randrange(0x3000), draw.randrange(0x11_0000)])
    return "" if 0xD800 <= code < 0xE000 or code == 0x2581 else chr(code)  # U+2581 is sentencepiece's space


def wanted(library: Library, data: bytes) -> list[int] | None:
    """Return the library's ids of a text, or None where it cannot say it."""
    ids: list[int] = []
    at_start = True
    for part in re.findall(r"[\udc80-\udcff]|[^\udc80-\udcff]+", data.decode("utf-8", errors="surrogateescape")):
        is_raw = "\udc80" <= part[0] <= "\udcff"
        found = [library.byte(ord(part) - 0xDC00)] if is_raw else (library.whole if at_start else library.inner)(part)
        at_start = False
        if None in found:
            return None
        ids += found  # type: ignore[arg-type]
    return ids if library.decode(ids) == data else None


def compared(name: str, library: Library) -> dict[str, Any]:
    """Return a row: how many texts have the library's ids, are refused as they must be, come back, differ."""
    tokenizer = kobza.vocabulary("smollm2" if name == "smollm2" else next((DATA / "tokenizers").glob(f"{name}.*")))
    row = {"vocabulary": name, "texts": COUNT, "equal ids": 0, "refused, as must be": 0, "come back": 0, "differ": 0}
    for data in texts(COUNT, seed=len(name)):
        expected = wanted(library, data)
        try:
            ids = tokenizer.encode(data)
        except WrongVocabulary:
            row["refused, as must be" if expected is None else "differ"] += 1
            continue
        row["equal ids" if ids == expected else "differ"] += 1
        row["come back"] += tokenizer.decode(ids) == data
    try:
        tokenizer.encode("a\ud800")
        row["lone surrogate"] = "taken"
    except BadValue:
        row["lone surrogate"] = "refused"
    return row


def published() -> list[dict[str, Any]]:
    """Return a row per published figure."""
    rows = []
    for name, text, ids in PUBLISHED:
        tokenizer = kobza.vocabulary(next((DATA / "tokenizers").glob(f"{name}.*")))
        got = tokenizer.encode(text, start=name.startswith("mistral"))
        rows.append({"what": f"{name}: {text[:40]}", "holds": " ".join(map(str, got)) == ids})
    tokenizer = kobza.vocabulary(DATA / "tokenizers" / "o200k_base.tiktoken")
    raw = (DATA / "text" / "kobzar.txt").read_bytes()
    for what, got, number in (
        ("o200k_base: ids in all", len(tokenizer), 200_019),
        ("o200k_base: Kobzar in text mode", len(tokenizer.encode(raw.replace(b"\r\n", b"\n"))), 209_951),
        ("o200k_base: Kobzar as it is", len(tokenizer.encode(raw)), 210_433),
    ):
        rows.append({"what": f"{what} {number:,}", "holds": got == number})
    return rows


def trained() -> list[dict[str, Any]]:
    """Return rows: our files in their own libraries, merges against Hugging Face's, two runs."""
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    corpus = (DATA / "text" / "tinyshakespeare.txt").read_text()
    ours = pairs.train(corpus, size=1024)
    with tempfile.TemporaryDirectory() as folder:
        file = ours.save_ranks(Path(folder, "own.tiktoken"))
        again = pairs.train(corpus, size=1024).save_ranks(Path(folder, "again.tiktoken"))
        same = file.read_bytes() == again.read_bytes()
        first = tiktoken.Encoding("own", pat_str=ours.pattern, mergeable_ranks=load_tiktoken_bpe(str(file)),
                                  special_tokens=ours.special)  # fmt: skip
        second = tokenizers.Tokenizer.from_file(str(ours.save_json(Path(folder, "tokenizer.json"))))
    second.encode_special_tokens = True
    samples = [data.decode() for data in texts(COUNT, 0) if _is_text(data)]
    ids = [ours.encode(sample) for sample in samples]
    level = tokenizers.pre_tokenizers.ByteLevel
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = level(add_prefix_space=False)
    theirs.train_from_iterator([corpus], tokenizers.trainers.BpeTrainer(
        vocab_size=1023, min_frequency=2, initial_alphabet=level.alphabet(), show_progress=False))  # fmt: skip
    table = byte_to_character()
    merges = [["".join(table[byte] for byte in half) for half in merge] for merge in ours.merges]
    return [
        {"what": f"{len(samples):,} texts in tiktoken", "holds": ids == [first.encode_ordinary(s) for s in samples]},
        {"what": f"{len(samples):,} texts in tokenizers", "holds": ids == [second.encode(s).ids for s in samples]},
        {"what": "merges of Hugging Face's trainer", "holds": merges == json.loads(theirs.to_str())["model"]["merges"]},
        {"what": "two runs, one file", "holds": same},
    ]


def _is_text(data: bytes) -> bool:
    return data.decode(errors="replace").encode() == data


def main() -> int:
    """Print three tables; return 1 if anything differs."""
    facts = Table([*published(), *trained()], title="Published figures; vocabularies trained here")
    print(facts, "", sep="\n", flush=True)
    makers: list[tuple[str, Library]] = [(n, ranked(n)) for n in ("r50k_base", "cl100k_base", "o200k_base", "llama-3")]
    makers += [("mistral-7b-v0.1", pieced("mistral-7b-v0.1")), ("smollm2", smollm2())]
    rows = [compared(*maker) for maker in makers]
    print(Table(rows, title="Random texts against the library"))
    fails = not all(facts["holds"]) or any(row["differ"] or row["lone surrogate"] != "refused" for row in rows)
    return int(fails or any(row["come back"] != row["equal ids"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
