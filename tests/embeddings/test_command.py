"""A file of word vectors is looked at from the command line like a model."""

from pathlib import Path

from kobza.cli.main import main


def test_a_file_of_word_vectors_is_looked_at(tmp_path: Path, capsys):
    (tmp_path / "v.txt").write_text("sea 1 2\nocean 1 2.1\ntea -1 0\n")
    assert main(["look", str(tmp_path / "v.txt"), "neighbors:token=sea,k=1"]) == 0
    assert "ocean" in capsys.readouterr().out
