"""GGUF files: weights, logits, configuration and ids equal to transformers', architecture by architecture."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import kobza
from kobza.core.errors import Corrupt, KobzaError, Truncated, Unavailable, UnknownName, WrongTensors
from kobza.models import gguf_file
from kobza.models.gguf_config import PLAIN, config_dict
from kobza.models.gguf_header import TYPES, TensorInfo, read_header
from kobza.models.tiny import tiny

TEXT = "The kobza is a lute 123 with a short neck"
Q8_0 = gguf.GGMLQuantizationType.Q8_0


@pytest.fixture(autouse=True)
def transformers_reads_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks for accelerate before it reads a GGUF file, and then does not use it on a CPU."""
    import transformers.modeling_utils

    monkeypatch.setattr(transformers.modeling_utils, "is_accelerate_available", lambda *_: True)


def model_of(architecture: str) -> Any:
    """A small random model of an architecture, as something with a module and a tokenizer."""
    if architecture == "gpt2":
        return tiny("gpt2", context=1024)  # transformers reads no n_positions from the file
    if architecture == "qwen3":
        return tiny("qwen3", width=512)  # nor the width of a head
    if architecture in ("starcoder2", "falcon", "nemotron", "bloom", "mamba"):
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512}
        if architecture == "bloom":
            sizes = {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4}
        if architecture == "mamba":
            sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2}
        torch.manual_seed(0)
        config = AutoConfig.for_model(architecture, **sizes, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True)
        return SimpleNamespace(module=AutoModelForCausalLM.from_config(config), tokenizer=tiny().tokenizer)
    return tiny(architecture)


def describe(writer: gguf.GGUFWriter, config: Any) -> None:
    """Write the sizes."""
    heads = getattr(config, "num_attention_heads", 4)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(1024 if config.model_type == "gpt2" else 512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", heads))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_sliding_window(16)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "mamba":
        writer.add_ssm_conv_kernel(config.conv_kernel)
        writer.add_ssm_state_size(config.state_size)
        writer.add_ssm_time_step_rank(config.time_step_rank)
        writer.add_ssm_inner_size(config.intermediate_size)


def write_words(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Write a byte-level vocabulary."""
    backend = tokenizer._backend
    names = {id: token for token, id in backend.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([names.get(id, f"[PAD{id}]") for id in range(size)])
    writer.add_token_types([3, 3] + [1] * (size - 2))
    merges = json.loads(backend.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template("{{ messages[0].content }}")


def as_stored(architecture: str, name: str, values: np.ndarray) -> np.ndarray:
    """Give a tensor the shape that llama.cpp's converter gives it."""
    turned = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
    if architecture == "gpt2" and name.endswith(turned):
        values = values.T
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        values = values + 1
    if architecture == "mamba":
        values = -np.exp(values) if name.endswith("ssm_a") else values[:, 0] if "conv1d.weight" in name else values
    return np.ascontiguousarray(values)


def write(path: Path, architecture: str, kind: Any = Q8_0) -> Any:
    """Write a model as GGUF, its large matrices as `kind`."""
    model = model_of(architecture)
    config = model.module.config
    writer = gguf.GGUFWriter(path, architecture)
    describe(writer, config)
    write_words(writer, model.tokenizer, config.vocab_size)
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    state = model.module.state_dict()
    table = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    written = set()
    for name, key in gguf_file._named(model.module, list(state), table, "").items():
        if key in written or (name == "output.weight" and config.tie_word_embeddings):
            continue
        written.add(key)
        values = as_stored(architecture, name, state[key].numpy())
        if kind is not None and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.mark.parametrize("architecture", sorted(PLAIN))
def test_weights_logits_and_ids_equal_transformers(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from kobza.models.building import quiet

    path = tmp_path / "x.gguf"
    write(path, architecture)
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
        words = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for ours in (kobza.open(path), kobza.open(path)):  # converted, then from the cache
        state = ours.module.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in theirs.state_dict().items())
        ids = ours.tokenizer.encode(TEXT)
        assert ids == words(TEXT, add_special_tokens=False).input_ids
        with torch.inference_mode():
            logits = [module(torch.tensor([ids])).logits for module in (theirs, ours.module)]
        assert torch.equal(*logits)
        assert torch.isfinite(logits[0]).all()
        assert ours.tokenizer.chat_template == words.chat_template
        assert (ours.tokenizer.start_id, ours.tokenizer.end_id) == (words.bos_token_id, words.eos_token_id)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "stablelm", "gpt2"])
def test_configuration_equals_transformers(tmp_path: Path, architecture: str) -> None:
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    write(tmp_path / "x.gguf", architecture)
    header = read_header(tmp_path / "x.gguf")
    assert config_dict(header) == load_gguf_checkpoint(str(tmp_path / "x.gguf"))["config"]


def test_names_of_tensors_equal_transformers() -> None:
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    for family in ("llama", "gpt2", "gemma2"):
        module = tiny(family).module
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
        table = gguf.get_tensor_name_map(arch, 2)
        ours = gguf_file._named(module, list(module.state_dict()), table, "")
        assert ours == get_gguf_hf_weights_map(module, TensorProcessor())


def test_sentencepiece_ids_equal_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    pieces = ["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    pieces += ["▁", *"abcdehklnorstuz", "th", "the", "▁the", "▁ko", "ko", "bz", "za", "kobza", "▁kobza"]
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    describe(writer, tiny(vocabulary=300).module.config)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * 259 + [-float(n) for n in range(len(pieces) - 259)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    from kobza.models.gguf_config import tokenizer

    ours = tokenizer(read_header(tmp_path / "x.gguf"), "x")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in ("the kobza", "the", "a <0x41> б\n", "<s>the"):
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert ours.encode(text) == expected
    assert ours.decode(ours.encode("the kobza б")) == "the kobza б".encode()
    assert ours.marks.adds_start


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_type_gives_the_reference_s_values(kind: int) -> None:
    name, block, size = TYPES[kind]
    rng = np.random.default_rng(kind)
    raw = rng.integers(0, 256, 8 * size, dtype=np.uint8)
    info = TensorInfo("x", (2, 4 * block), kind, 0, raw.size)
    try:
        with np.errstate(all="ignore"):  # random scales are NaN now and then
            expected = gguf.dequantize(raw.reshape(2, -1), gguf.GGMLQuantizationType(kind))
    except NotImplementedError:
        if block == 1:  # whole numbers and float64: no blocks to unpack
            assert gguf_file._values(raw, info).shape == (2, 4)
        else:
            with pytest.raises(Corrupt, match=f"stored as {name}, which cannot be dequantized"):
                gguf_file._values(raw, info)
        return
    np.testing.assert_array_equal(gguf_file._values(raw, info), expected.reshape(info.shape))


# -- refusals -----------------------------------------------------------------------------------------------------
def vocabulary(writer: Any, **changed: Any) -> tuple[bytes, ...]:
    """The fields of a vocabulary of three tokens and one merge."""
    w = writer
    fields = {
        "model": (w.STRING, "gpt2"),
        "tokens": (w.ARRAY, (w.STRING, ["a", "b", "ab"])),
        "token_type": (w.ARRAY, (5, [1, 1, 1])),
        "merges": (w.ARRAY, (w.STRING, ["a b"])),
    } | changed
    return (w.ARCHITECTURE, *(w.field(f"tokenizer.ggml.{key}", *value) for key, value in fields.items() if value))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"tokens": None}, "no list of tokens"),
        ({"tokens": (9, (5, [1, 2, 3]))}, "no list of tokens"),
        ({"token_type": (9, (5, [1, 1]))}, "3 tokens but 2 values of 'tokenizer.ggml.token_type'"),
        ({"scores": (9, (6, [1.0] * 4))}, "3 tokens but 4 values of 'tokenizer.ggml.scores'"),
        ({"merges": (9, (8, ["a c"]))}, "merge 0, 'a c', names tokens"),
        ({"merges": (9, (8, ["ab"]))}, "merge 0, 'ab', names tokens"),
        ({"bos_token_id": (4, 3)}, "bos_token_id is 3, the vocabulary has ids 0 .. 2"),
        ({"model": (8, "unheard-of")}, "cannot be used.*unheard-of"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(
    writer: Any, put: Callable[..., Path], changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(Corrupt, match=says):
        kobza.open(put(writer.gguf(vocabulary(writer, **changed))))


def test_a_file_cut_at_any_64th_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf", "llama")
    whole = (tmp_path / "x.gguf").read_bytes()
    for part in range(64):
        (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) * part // 64])
        with pytest.raises(Truncated, match="cut off|not a GGUF file"):
            kobza.open(tmp_path / "cut.gguf")


def rewritten(path: Path, **changed: Any) -> None:
    """Change numbers in the metadata of a file in place; all are written as uint32."""
    data = bytearray(path.read_bytes())
    for key, number in changed.items():
        at = data.index(key.encode()) + len(key) + 4
        data[at : at + 4] = int(number).to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("key", "number", "kind", "says"),
    [
        ("llama.block_count", 4, WrongTensors, "18 missing: model.layers.2"),
        ("llama.block_count", 1, WrongTensors, "no place for|surplus"),
        ("llama.block_count", 10**9, Corrupt, "num_hidden_layers is 1000000000"),
        ("llama.block_count", 0, Corrupt, "num_hidden_layers is 0"),
        ("llama.embedding_length", 64, WrongTensors, "has shape"),
        ("llama.embedding_length", 2**31, Corrupt, "hidden_size is 2147483648"),
        ("llama.attention.head_count", 5, Corrupt, r"not a multiple of the number of attention heads \(5\)"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused(
    tmp_path: Path, key: str, number: int, kind: type[KobzaError], says: str
) -> None:
    write(tmp_path / "x.gguf", "llama")
    rewritten(tmp_path / "x.gguf", **{key: number})
    with pytest.raises(kind, match=says):
        kobza.open(tmp_path / "x.gguf")


def test_an_unknown_architecture_is_refused(writer: Any, put: Callable[..., Path]) -> None:
    fields = (writer.field("general.architecture", writer.STRING, "unheard"), *vocabulary(writer)[1:])
    with pytest.raises((Unavailable, UnknownName), match="unheard"):
        kobza.open(put(writer.gguf(fields)))


@pytest.mark.real
def test_the_real_file_gives_transformers_logits(smollm2: Any) -> None:
    from transformers import AutoModelForCausalLM

    from kobza.models.building import quiet

    path = Path(smollm2.origin.path)
    with quiet():
        theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    ids = torch.tensor([smollm2.tokenizer.encode(TEXT)])
    with torch.inference_mode():
        assert torch.equal(theirs(ids).logits, smollm2.module(ids).logits)
