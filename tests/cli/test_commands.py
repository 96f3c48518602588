"""Every command does what its help says, on the tiny model."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kobza as package
from kobza.core.table import Table
from kobza.measures import bits_per_byte

SHORT = ("-t", "topics[:300]")


def test_open_prints_the_anatomy(kobza: Callable[..., Any], tiny: Any) -> None:
    said = kobza("open tiny")
    assert said.code == 0
    assert f"{tiny.parameters:,}" in said.out
    assert "blocks.*.attn.q" in said.out
    assert "blocks.1.attn.q" not in said.out
    every = json.loads(kobza("open tiny --json").out)
    assert any("blocks.1.attn.q" in row for row in every["tables"][-1]["rows"])


def test_open_lists_every_matrix(kobza: Callable[..., Any], tiny: Any) -> None:
    lines = kobza("open tiny --matrices --csv").out.splitlines()
    assert len(lines) == 1 + len(tiny.matrices)


def test_open_saves_a_copy(kobza: Callable[..., Any], tiny: Any, tmp_path: Path) -> None:
    said = kobza("open tiny --save copy")
    assert said.err.startswith("saved copy: ")
    assert package.open(tmp_path / "copy").fingerprint == tiny.fingerprint


def test_tokens_shows_ids_bytes_and_the_start_mark(kobza: Callable[..., Any], tiny: Any) -> None:
    rows = [json.loads(line) for line in kobza("tokens", "tiny", "a \x1b б", "--jsonl").out.splitlines()]
    assert rows[0]["kind"] == "start mark"
    assert [row["id"] for row in rows[1:]] == tiny.tokenizer.encode("a \x1b б")
    assert bytes.fromhex("".join(row["bytes"] for row in rows[1:])) == "a \x1b б".encode()
    assert "\x1b" not in kobza("tokens", "tiny", "\x1b[2J").out


def test_tokens_reads_a_file_a_pipe_and_the_vocabulary(
    kobza: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poem.txt").write_bytes(b"lava\xff")
    assert kobza("tokens tiny --text poem.txt").out == kobza("tokens", "tiny", "lava\udcff").out
    piped = io.TextIOWrapper(io.BytesIO(b"lava\xff"))
    monkeypatch.setattr("sys.stdin", piped)
    assert kobza("tokens tiny").out == kobza("tokens tiny --text poem.txt").out
    assert len(kobza("tokens tiny --vocabulary --csv").out.splitlines()) == 301
    assert kobza("tokens tiny x --text poem.txt").code == 2


def test_pieces_are_told_apart_without_colors(kobza: Callable[..., Any]) -> None:
    assert kobza("tokens", "tiny", "lava flo", "--pieces").out.startswith("[<s>]|l|a|v|a|")


def test_look_gives_what_the_view_gives(kobza: Callable[..., Any], tiny: Any) -> None:
    from kobza.embeddings import spectrum

    assert Table(json.loads(line) for line in kobza("look tiny spectrum --jsonl").out.splitlines()).rows == [
        {c: row.get(c) for c in spectrum.table(tiny).columns} for row in spectrum.table(tiny)
    ]


def test_look_at_several_views_and_after_an_edit(kobza: Callable[..., Any], tmp_path: Path) -> None:
    assert kobza("look tiny sizes spectrum -o page.html").code == 0
    assert "<!doctype html>" in (tmp_path / "page.html").read_text().lower()
    assert kobza("look tiny spectrum --csv").out != kobza("look tiny spectrum --csv -e scaling:factor=2").out


def test_look_without_a_view_or_with_an_unknown_one_is_refused(kobza: Callable[..., Any]) -> None:
    assert "See all: kobza list embeddings" in kobza("look tiny").err
    assert "Nearest: 'spectrum'" in kobza("look tiny spectrm").err


def test_measure_gives_the_reading(kobza: Callable[..., Any], tiny: Any) -> None:
    found = json.loads(kobza("measure", "tiny", "bits_per_byte:window=64,overlap=16", *SHORT, "--json").out)
    by_hand = bits_per_byte.measure(tiny, "topics[:300]", window=64, overlap=16)
    assert found["schema"] == "kobza.result/1"
    assert found["readings"][0]["value"] == by_hand.value
    assert found["readings"][0]["record"]["how"] == by_hand.record["how"]


def test_edit_measures_before_and_after_and_saves(kobza: Callable[..., Any], tmp_path: Path, tiny: Any) -> None:
    said = kobza("edit", "tiny", "scaling:factor=2", "noise:strength=0.1", *SHORT, "--save", "edited", "--csv")
    assert said.code == 0, said.err
    assert "saved edited: " in said.err
    row = said.out.splitlines()[1].split(",")
    assert row[:3] == ["topics[0:300]", "bits_per_byte", "bit/B"]
    opened = package.open(tmp_path / "edited")
    assert [change.technique for change in opened.changes] == ["scaling", "noise"]
    assert bits_per_byte.measure(opened, "topics[:300]").value == float(row[4])


def test_edit_refuses_a_range(kobza: Callable[..., Any]) -> None:
    said = kobza("edit tiny scaling:factor=1|2")
    assert (said.code, "kobza sweep tiny" in said.err) == (2, True)


@pytest.mark.parametrize("suffix", ["json", "csv", "jsonl", "md", "html", "parquet", "svg", "png"])
def test_a_result_is_written_in_every_format(kobza: Callable[..., Any], tmp_path: Path, suffix: str) -> None:
    said = kobza("edit", "tiny", "scaling:factor=2", *SHORT, "-m", "bits_per_byte", "-o", f"x.{suffix}")
    assert (said.code, said.out, said.err) == (0, "", f"wrote x.{suffix}\n")
    assert (tmp_path / f"x.{suffix}").stat().st_size > 50


def test_two_formats_at_once_are_refused(kobza: Callable[..., Any]) -> None:
    assert kobza("runs --json --csv").code == 2


def test_a_recipe_is_run_kept_listed_shown_compared_and_removed(kobza: Callable[..., Any], tmp_path: Path) -> None:
    for name, factor in (("one", 1), ("two", 2)):
        (tmp_path / f"{name}.yaml").write_text(
            f"title: {name}\nopen: tiny\nsteps: ['scaling:factor={factor}']\n"
            "measures: [bits_per_byte]\ntext: ['topics[:300]']\n"
        )
        assert kobza(f"run {name}.yaml").code == 0
    rows = [json.loads(line) for line in kobza("runs --jsonl").out.splitlines()]
    assert [(row["title"], row["state"]) for row in rows] == [("one", "finished"), ("two", "finished")]
    first, second = (row["run"] for row in rows)
    assert kobza("runs", first, "--json").out == kobza("run", "one.yaml", "--json").out
    compared = json.loads(kobza("runs", first, second, "--json").out)
    edited = compared["rows"][0]
    assert edited[compared["columns"].index("factor")] > 1
    assert "factor: 1.0" in kobza("runs", first, "--recipe").out
    assert kobza("runs", first, "--path").out.strip().endswith(first)
    assert kobza("runs", first, second, first).code == 2
    assert kobza("runs", "tiny-scaling").code == 2
    assert kobza("runs", "nonsense").code == 2
    assert kobza("runs --remove").code == 2
    assert kobza("runs", first, "--remove").out.startswith("removed ")
    assert len(kobza("runs --jsonl").out.splitlines()) == 1


def test_a_sweep_shows_its_table_and_keeps_its_run(kobza: Callable[..., Any], tmp_path: Path) -> None:
    said = kobza("sweep", "tiny", "scaling:factor=1|2", *SHORT, "--workers", "1", "--csv", "--save", "out")
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("edit,scaling.factor,text,bits_per_byte [bit/B],low,high,factor")
    assert [line.split(",")[0] for line in lines[1:]] == ["unedited", "scaling", "scaling"]
    assert (tmp_path / "out" / "table-0.csv").read_text() == said.out
    kept = kobza("runs --jsonl").out
    assert json.loads(kept)["points"] == "3/3"


def test_list_and_help_know_every_technique(kobza: Callable[..., Any]) -> None:
    from kobza.core import techniques

    listed = kobza("list").out
    for room in techniques.rooms():
        for name in techniques.names(room):
            assert name in listed
            said = kobza("help", name)
            assert said.code == 0
            for option in techniques.described(room, name):
                assert f"\n  {option.name}: " in said.out


def test_help_knows_commands_and_guesses(kobza: Callable[..., Any]) -> None:
    assert "Usage: kobza sweep" in kobza("help sweep").out
    assert "Nearest: 'lowrank'" in kobza("help lowrnk").err
    assert "Nearest: 'edits'" in kobza("list edit").err


def test_doctor_names_versions_folders_and_network(kobza: Callable[..., Any]) -> None:
    rows = {json.loads(line)["what"]: json.loads(line) for line in kobza("doctor --jsonl").out.splitlines()}
    assert rows["torch"]["found"]
    assert rows["downloads"]["remark"] == "HF_HUB_OFFLINE is set"
    assert "GiB free" in rows["cache"]["remark"]


def test_threads_are_set_for_the_command_only(kobza: Callable[..., Any]) -> None:
    import torch

    before = torch.get_num_threads()
    found = json.loads(kobza("measure", "tiny", *SHORT, "--threads", "2", "--json").out)
    assert found["readings"][0]["record"]["machine"]["threads"] == 2
    assert torch.get_num_threads() == before


# --- say -----------------------------------------------------------------------------------------------------------


def test_say_goes_on_with_the_text(kobza: Callable[..., Any], tiny: Any) -> None:
    from kobza.decoding import greedy

    expected = greedy.generate(tiny, "lava", tokens=8)
    said = json.loads(kobza("say tiny lava --strategy greedy -n 8 --json").out)
    assert said["ids"] == expected.ids
    assert said["text"] == expected.text
    assert said["stopped_by"] == expected.stopped_by


def test_say_is_repeated_by_its_seed(kobza: Callable[..., Any]) -> None:
    first, again, other = (kobza(f"say tiny lava -n 12 --seed {seed} --json").out for seed in (1, 1, 2))
    assert json.loads(first)["ids"] == json.loads(again)["ids"] != json.loads(other)["ids"]


def test_say_speaks_with_an_edited_model(kobza: Callable[..., Any]) -> None:
    said = json.loads(kobza("say tiny lava -n 4 --json --edit scaling:factor=2").out)
    assert said["changes"] == ["scaling:where=embed,factor=2.0"]


def test_say_speaks_with_a_steered_model(kobza: Callable[..., Any], tiny: Any) -> None:
    from kobza.decoding import greedy
    from kobza.interventions.steer import direction
    from kobza.models.hooks import hooked

    vector = direction(tiny, positive=["lava flows"], negative=["ice rests"], layer=1)
    vector.save("joy.safetensors")
    with hooked(tiny, vector.hooks(40.0)):
        expected = greedy.generate(tiny, "lava", tokens=8).ids
    words = "say tiny lava --strategy greedy -n 8 --json"
    plain, none, much = (json.loads(kobza(words + more).out) for more in ("", " --steer joy.safetensors:0",
                         " --steer joy.safetensors:30 --steer joy.safetensors:10"))  # fmt: skip
    assert plain["ids"] == none["ids"] != much["ids"] == expected
    assert plain["steer"] == [] and much["steer"] == ["joy.safetensors:30", "joy.safetensors:10"]
    for more, said in (("joy.safetensors:x", "not a number"), ("none.safetensors", "no such file"),
                       ("joy.safetensors --backend bare", "cannot be steered")):  # fmt: skip
        refused = kobza(f"say tiny lava --steer {more}")
        assert refused.code == 2 and said in refused.err


def test_say_reads_a_pipe(kobza: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"lava\n")))
    assert json.loads(kobza("say tiny -n 4 --json").out)["prompt"] == "lava"


def test_say_never_writes_raw_control_characters(kobza: Callable[..., Any]) -> None:
    out = kobza("say tiny lava -n 120 --seed 3").out
    assert all(c.isprintable() or c in "\n\t" for c in out)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("say tiny lava --strategy smple", "Nearest: 'sample'"),
        ("say tiny lava --strategy sample:heat=1", "no option 'heat'"),
        ("say tiny lava --system be-kind", "--system needs a chat"),
        ("say tiny lava --seed x", "not a whole number"),
        ("say tiny lava -n 100000", "was trained for"),
    ],
)
def test_say_refuses_what_it_cannot_do(kobza: Callable[..., Any], words: str, said: str) -> None:
    found = kobza(words)
    assert found.code == 2
    assert said in found.err


def test_a_chat_remembers_what_was_said(kobza: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tiny: Any) -> None:
    from kobza.cli import speaking

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked: list[Any] = []

    def generation(model: Any, prompt: Any, wanted: Any) -> list[str]:
        asked.append(prompt)
        return ["well", "\x1b[2J"]

    monkeypatch.setattr("sys.stdin", Terminal("one\ntwo\n\n"))
    monkeypatch.setattr(speaking, "_generation", generation)
    monkeypatch.setattr(type(tiny.tokenizer), "chat_template", "{{ messages }}")
    said = kobza("say tiny --system short")
    assert said.out == "well\\x1b[2J\nwell\\x1b[2J\n"
    assert [[m["content"] for m in prompt] for prompt in asked] == [
        ["short", "one"],
        ["short", "one", "well\x1b[2J", "two"],
    ]
