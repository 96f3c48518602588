"""Building a module leaves scipy where it is until somebody needs it."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from kobza.models import building
building.skeleton({"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 8})
assert "transformers.loss.loss_utils" in sys.modules
assert not {"scipy.optimize", "scipy.sparse"} & sys.modules.keys(), "scipy was imported"
from transformers.utils import is_scipy_available
from transformers.loss import loss_for_object_detection as losses
assert is_scipy_available()
rows, columns = losses.linear_sum_assignment([[4, 1], [2, 8]])
assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]
"""


def test_scipy_is_imported_only_when_a_loss_needs_it() -> None:
    pytest.importorskip("scipy")
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
