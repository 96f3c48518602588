"""The loop: killed at any moment it ends with the same bits; what cannot be trained stops and says where."""

import json
import math
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import kobza
from kobza.core.errors import BadValue, CannotWrite, NotFinite, OutOfRange, UnknownName
from kobza.models.tiny import byte_tokenizer
from kobza.training import base, scratch
from kobza.training.parts import checkpoints, classic, corpus

TEXT = "the banks of the wide Dnipro, the steep cliffs, the waves that roar and moan. " * 30


def job(*, width: int = 32, dropout: float = 0.0, fault: int = -1) -> base.Job:
    """A small model on a text; `fault` is the number of the batch whose loss is not a number."""
    tokenizer = byte_tokenizer()
    module = classic.build("classic", classic.Sizes(1, width, 2, 2, 2 * width, 16), tokenizer, seed=0)
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = dropout
    part = corpus.split([TEXT], 0.1)
    windows = corpus.Windows(corpus.encoded(part.train, tokenizer), 4, 16)
    made = scratch.job_of(module, windows, corpus.Held.of(part, tokenizer), label="tiny", tokenizer=tokenizer)
    if fault >= 0:
        drawn = [0]
        plain = made.loss

        def broken(batch: Any) -> Any:
            drawn[0] += 1
            with torch.no_grad():
                if drawn[0] == fault + 1:
                    module.transformer.h[0].mlp.c_fc.weight[0, 0] = math.nan
            return plain(batch)

        made.loss = broken
    return made


def trained(folder: str, steps: int, pause: float = 0.0, **how: Any) -> str:
    """Train to the end and return a digest of the weights; `pause` makes every batch slow enough to be killed in."""
    torch.set_num_threads(1)
    work = job(dropout=0.1)
    plain = work.draw

    def draw(generator: torch.Generator) -> Any:
        time.sleep(pause)
        return plain(generator)

    work.draw = draw
    base.run(work, base.plan(steps, checkpoint=1, evaluate=7, precision="float32", **how), folder=folder)
    return digest(work.module)


def digest(module: Any) -> str:
    from kobza.core.files import sha256

    return sha256(b"".join(p.detach().contiguous().numpy().tobytes() for _, p in sorted(module.named_parameters())))


@pytest.fixture(scope="module")
def processes() -> Any:
    """Processes that have everything imported when they start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kobza.training.scratch", "transformers.models.gpt2.modeling_gpt2"])
    return context


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bits(processes: Any, tmp_path: Path) -> None:
    steps = 40
    undisturbed = trained(str(tmp_path / "whole"), steps)
    places = random.Random(0)
    folder = tmp_path / "killed"
    seen = set()
    for _ in range(10):
        process = processes.Process(target=trained, args=(str(folder), steps, 0.03))
        process.start()
        before = newest(folder)
        deadline = time.monotonic() + 60
        while newest(folder) <= before and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(places.uniform(0, 0.08))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        seen.add(newest(folder))
    assert len(seen) > 5, "the kills must fall on different steps"
    assert max(seen) < steps, "the last kill must come before the end"
    assert trained(str(folder), steps) == undisturbed
    rows = [
        json.loads((checkpoints.found(tmp_path / name)[0] / "state.json").read_text()) for name in ("whole", "killed")
    ]
    first, second = ([(row["step"], row["loss"], row["held"]) for row in state["history"]] for state in rows)
    assert first == second


def newest(folder: Path) -> int:
    there = checkpoints.found(folder)
    return int(there[0].name[5:]) if there else -1


@pytest.mark.parametrize("optimizer", ["muon", "adafactor", "schedule_free", "galore"])
def test_every_optimizer_resumes_to_the_same_bits(optimizer: str, tmp_path: Path) -> None:
    how = {"optimizer": optimizer, "rank": 4, "schedule": "constant"}
    undisturbed = trained(str(tmp_path / "whole"), 9, **how)
    trained(str(tmp_path / "cut"), 4, **how)
    assert trained(str(tmp_path / "cut"), 9, **how) == undisturbed


def test_a_forgotten_sampler_changes_the_bits(tmp_path: Path) -> None:
    """The planted fault: without the generator's state a resumed run looks fine and is another one."""
    undisturbed = trained(str(tmp_path / "whole"), 8, schedule="constant")
    folder = tmp_path / "cut"
    trained(str(folder), 4, schedule="constant")
    place = checkpoints.found(folder)[0] / "tensors.safetensors"
    from safetensors.torch import load_file, save_file

    tensors = load_file(place)
    tensors["random.batches"] = torch.Generator().manual_seed(0).get_state()
    save_file(tensors, place)
    assert trained(str(folder), 8, schedule="constant") != undisturbed


def limited(folder: str, report: Any) -> None:
    """Train where no file may grow beyond some bytes: what a full disk does to a write."""
    trained(folder, 3, schedule="constant")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    try:
        trained(folder, 6, schedule="constant")
    except CannotWrite as error:
        report.send(str(error))


def test_a_full_disk_leaves_the_checkpoint_before_it_and_it_is_used(processes: Any, tmp_path: Path) -> None:
    ours, theirs = processes.Pipe()
    process = processes.Process(target=limited, args=(str(tmp_path), theirs))
    process.start()
    assert ours.poll(60)
    said = ours.recv()
    process.join()
    assert "step-00000003' is whole" in said
    assert newest(tmp_path) == 3
    assert not list(tmp_path.glob(".step-*")), "nothing half-written is left"
    assert trained(str(tmp_path), 6, schedule="constant") == trained(str(tmp_path / "other"), 6, schedule="constant")


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    undisturbed = trained(str(tmp_path / "whole"), 6)
    trained(str(tmp_path / "cut"), 6)
    place = checkpoints.found(tmp_path / "cut")[0] / "tensors.safetensors"
    place.write_bytes(place.read_bytes()[:1000])
    assert trained(str(tmp_path / "cut"), 6) == undisturbed


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trained(str(tmp_path), 2)
    with pytest.raises(BadValue, match=r"rate: 0\.001 there, 0\.002 now"):
        trained(str(tmp_path), 2, rate=0.002)
    with pytest.raises(BadValue, match="shapes"):
        base.run(job(width=64), base.plan(2, checkpoint=1, evaluate=7, precision="float32"), folder=tmp_path)


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_where(tmp_path: Path) -> None:
    how = base.plan(9, checkpoint=1, precision="float32")
    with pytest.raises(NotFinite) as caught:
        base.run(job(fault=4), how, folder=tmp_path)
    assert "step 4" in str(caught.value)
    assert "'transformer.h.0.mlp.c_fc'" in str(caught.value)
    assert "step-00000003" in str(caught.value), "what stands before a broken step may be broken itself"
    assert (tmp_path / "broken-step-00000004").is_dir()
    state = checkpoints.load(tmp_path, json.loads((tmp_path / "step-00000003" / "state.json").read_text())["plan"])
    assert state is not None
    assert all(torch.isfinite(tensor).all() for tensor in state.weights.values())


def test_a_run_broken_by_values_not_finite_goes_on_with_a_lower_rate(tmp_path: Path) -> None:
    how = {"checkpoint": 2, "precision": "float32"}
    with pytest.raises(NotFinite, match="goes on from the last good checkpoint"):
        base.run(job(fault=5), base.plan(9, **how), folder=tmp_path)
    with pytest.raises(BadValue, match="seed"):
        base.run(job(), base.plan(9, seed=1, rate=1e-4, **how), folder=tmp_path)
    history, facts = base.run(job(), base.plan(9, rate=1e-4, warmup=2, **how), folder=tmp_path)
    assert facts["steps"] == 9 and history["step"][0] == 0
    assert max(history["rate"][-2:]) <= 1e-4
    with pytest.raises(BadValue, match="rate"):  # the run is sound again: now nothing may change
        base.run(job(), base.plan(9, rate=1e-3, warmup=2, **how), folder=tmp_path)


def test_a_target_that_nothing_can_reach_is_refused() -> None:
    unmeasured = job()
    unmeasured.measure = None
    rewarded = job()
    rewarded.unit = "-reward"
    for made in (unmeasured, rewarded):
        with pytest.raises(BadValue, match="no bits per byte"):
            base.run(made, base.plan("1.2bpb"))


def test_accumulated_batches_are_one_batch() -> None:
    whole, parts = job(), job()
    half = parts.draw
    queue: list[Any] = []

    def draw(generator: torch.Generator) -> Any:
        if not queue:
            read, wanted = half(generator)
            queue.extend([(read[:2], wanted[:2]), (read[2:], wanted[2:])])
        return queue.pop(0)

    parts.draw = draw
    how = {"precision": "float32", "clip": 0.0}
    first, _ = base.run(whole, base.plan(3, **how))
    second, _ = base.run(parts, base.plan(3, accumulate=2, **how))
    assert first["held"][-1] == pytest.approx(second["held"][-1], abs=1e-5)


def test_clipping_to_a_norm_no_gradient_reaches_changes_nothing() -> None:
    free, clipped = job(), job()
    base.run(free, base.plan(2, clip=0.0))
    base.run(clipped, base.plan(2, clip=1e9))
    assert digest(free.module) == digest(clipped.module)


def test_patience_returns_the_weights_of_the_minimum() -> None:
    work = job()
    values = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    kept = {}

    def measure() -> dict[str, float]:
        value = next(values)
        kept[value] = digest(work.module)
        return {"held": value}

    work.measure = measure
    history, facts = base.run(work, base.plan(50, evaluate=1, patience=2))
    assert facts["best_step"] == 1
    assert "no better held-out figure for 2 looks" in facts["ended"]
    assert len(history) == 4
    assert digest(work.module) == kept[2.0]


def test_a_target_in_bits_per_byte_ends_the_run() -> None:
    work = job()
    values = iter([3.0, 2.0, 1.4, 1.0])
    work.measure = lambda: {"held": next(values)}
    history, facts = base.run(work, base.plan("1.5bpb", evaluate=2))
    assert history["step"] == [0, 2, 4]
    assert "1.5 bit/B" in facts["ended"]


def test_a_budget_of_seconds_ends_the_run() -> None:
    history, facts = base.run(job(), base.plan("0.3s", evaluate=5))
    assert 0.3 <= facts["seconds"] < 10
    assert history.rows[-1]["step"] == facts["steps"] > 0


def test_every_row_and_the_csv_hold_steps_seconds_and_bits(tmp_path: Path) -> None:
    history, _ = base.run(job(), base.plan(4, evaluate=2), folder=tmp_path)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0].startswith("step,seconds,tokens,loss,held,held_all")
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "2", "4"]
    assert all({"step", "seconds", "held"} <= row.keys() for row in history)


def test_held_out_bits_are_those_of_the_yardstick(tiny: Any) -> None:
    """Windows without overlap, each begun by the start token: kobza's measure of the same text."""
    part = corpus.split([TEXT], 0.2, repeat=10_000)
    held = corpus.Held.of(part, tiny.tokenizer)
    found = base.held_bits(tiny.module, held, context=16, start=tiny.tokenizer.start_id)
    from kobza.measures import bits_per_byte

    wanted = bits_per_byte.measure(tiny, part.held, window=16, overlap=0)
    assert found["held"] == pytest.approx(wanted.value, abs=1e-5)
    assert found["held_all"] == found["held"]


def test_bad_settings_are_refused_before_anything_is_computed() -> None:
    for wrong in ({"rate": 0.0}, {"accumulate": 0}, {"clip": -1.0}, {"precision": "int8"}):
        with pytest.raises(OutOfRange):
            base.plan(1, **wrong)
    with pytest.raises(UnknownName, match="adamw"):
        base.run(job(), base.plan(1, optimizer="adam"))
    with pytest.raises(UnknownName, match="tensorboard"):
        base.run(job(), base.plan(1), log=("tensorbord",))
    with pytest.raises(OutOfRange, match="nothing to train"):
        base.run(base.Job(kobza.open("tiny").module, lambda g: None, lambda b: (b, {})), base.plan(1))


def test_the_global_random_state_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    base.run(job(dropout=0.5), base.plan(1))
    assert torch.equal(before, torch.get_rng_state())
