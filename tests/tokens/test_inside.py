"""What is inside a vocabulary: scripts, lengths, and tokens that no text gives."""

from kobza.tokens import inside
from kobza.tokens.ranks import Ranked, byte_ranks, bytes_vocabulary


def toy(*tokens: bytes, name: str = "toy") -> Ranked:
    ranks = byte_ranks()
    for token in tokens:
        ranks[token] = len(ranks)
    return Ranked(ranks, "gpt2", {"<end>": len(ranks)}, name=name)


def test_a_token_that_merging_never_reaches_is_found() -> None:
    # GPT-2's pattern cuts before a space, so no text gives "a b"
    found = inside.unreachable(toy(b"ab", b"a b"))
    assert [(row["token"], row["gives"]) for row in found] == [("a▁b", "a|▁|b")]


def test_a_token_that_only_stands_among_signs_is_not_listed() -> None:
    # alone, "s" after an apostrophe is cut off by GPT-2's pattern; behind a letter "x's" gives it
    assert len(inside.unreachable(toy(b"'s"))) == 0


def test_the_table_counts_every_kind() -> None:
    row = inside.table([toy(b" a", b"a b", "ї".encode(), b"\xd0\xb0\xd0")])[0]
    assert (row["ids"], row["control tokens"], row["bytes missing"]) == (261, 1, 0)
    assert row["begin with a space"] == 2  # the space itself and " a"
    assert (row["several words"], row["half characters"], row["longest"]) == (1, 129, 3)
    assert row["never given"] == 1 and "never given" not in inside.table([bytes_vocabulary()], reach=False)[0]


def test_scripts_sum_to_the_tokens() -> None:
    found = {row["script"]: row["toy"] for row in inside.by_script([toy(" море".encode(), b" 12", b"sea")])}
    assert (found["Cyrillic"], found["Latin"], found["digits"]) == (1, 53, 11)
    assert sum(found.values()) == 256 + 3


def test_lengths_are_shares() -> None:
    found = inside.by_length([toy(b"a" * 40)])
    assert found[0]["toy"] == 256 / 257 and found[-1]["toy"] == 1 / 257
