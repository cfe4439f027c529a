"""Import: every form of checkpoint gives the stored bits; every broken one says what is wrong."""

import json
import logging
import os
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fake_checkpoints import random_tensors, write_full, write_tensors, write_thinker
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ugc_jax.errors import UserError
from ugc_jax.hf import checkpoint, mapping, tensorfile
from ugc_jax.hf.checkpoint import Checkpoint, load_params
from ugc_jax.hf.hub import resolve_checkpoint
from ugc_jax.models.params import abstract_params, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import tiny

CONFIG = tiny()
BF16 = np.dtype(ml_dtypes.bfloat16)


def assert_same(params, values, dtype=None, prefix=""):
    """Every tensor of `params` is bitwise the one of `values`."""
    for tensor in tensors(thinker.declare(CONFIG)):
        expected = values[prefix + tensor.name]
        expected = expected.astype(dtype or expected.dtype)
        actual = mapping.read_tensor(params, tensor)
        assert actual.dtype == expected.dtype, tensor.name
        assert actual.tobytes() == expected.tobytes(), tensor.name


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("stored", [np.float32, BF16])
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_thinker_only(tmp_path, stored, dtype, stacked):
    values = random_tensors(CONFIG, stored, prefix="")
    write_thinker(tmp_path, CONFIG, values)
    params = load_params(tmp_path, CONFIG, dtype, stacked)
    assert_same(params, values, dtype and jnp.dtype(dtype))
    expected = abstract_params(thinker.declare(CONFIG), dtype or stored, stacked)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), expected
    )


def test_full_in_shards_reports_what_it_leaves(tmp_path, caplog):
    values = write_full(tmp_path, CONFIG)
    with caplog.at_level(logging.INFO, "ugc_jax"):
        params = load_params(tmp_path, CONFIG)
    assert_same(params, values, prefix="thinker.")
    assert "4 tensors outside the thinker" in caplog.text


def test_module_tree_names_of_transformers_5(tmp_path):
    values = random_tensors(CONFIG, np.float32, prefix="")
    renamed = {}
    for name, value in values.items():
        name = (
            name.replace("model.", "model.language_model.", 1)
            if name.startswith("model.")
            else name
        )
        renamed[f"model.{name}" if name.startswith(("visual.", "audio_tower.")) else name] = value
    write_thinker(tmp_path, CONFIG, renamed, files=2)
    assert_same(load_params(tmp_path, CONFIG), values)


def test_shardings(tmp_path):
    """Arrays land sharded as asked, with the same values."""
    values = random_tensors(CONFIG, np.float32, prefix="")
    write_thinker(tmp_path, CONFIG, values)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"))

    def spec(leaf):
        divisible = [size % 2 == 0 for size in leaf.shape]
        if len(divisible) < 2 or not all(divisible[-2:]):
            return P()
        return P(*[None] * (len(divisible) - 2), "tensor", "fsdp")

    shardings = jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec(leaf)),
        abstract_params(thinker.declare(CONFIG), jnp.float32, stacked=True),
    )
    params = load_params(tmp_path, CONFIG, shardings=shardings)
    assert jax.tree.map(lambda x: x.sharding, params) == shardings
    assert_same(params, values)
    weight = params["model"]["layers"]["mlp"]["up_proj"]["weight"]
    assert {shard.data.shape for shard in weight.addressable_shards} == {(2, 88, 32)}


def test_reads_only_the_slices_it_holds(tmp_path, monkeypatch):
    """With a stack split over layers, a device that holds layer 1 never asks for layer 0."""
    write_thinker(tmp_path, CONFIG, random_tensors(CONFIG, np.float32, prefix=""))
    asked = []
    read = tensorfile.TensorFile.read

    def record(self, name, parts):
        asked.extend((name, part.array.nbytes) for part in parts)
        return read(self, name, parts)

    monkeypatch.setattr(tensorfile.TensorFile, "read", record)
    mesh = jax.make_mesh((8,), ("x",))
    name = "model.embed_tokens.weight"
    shardings = jax.tree.map(
        lambda _: NamedSharding(mesh, P()), abstract_params(thinker.declare(CONFIG), jnp.float32)
    )
    shardings["model"]["embed_tokens"]["weight"] = NamedSharding(mesh, P("x"))
    load_params(tmp_path, CONFIG, shardings=shardings)
    size = CONFIG.text.vocab_size * CONFIG.text.hidden_size * 4
    assert [nbytes for asked_name, nbytes in asked if asked_name == name] == [size // 8] * 8
    assert (
        len(asked) == len(tensors(thinker.declare(CONFIG))) + 7
    )  # a replicated array is read once, not eight times


def test_a_block_is_read_once_for_all_devices(tmp_path, monkeypatch):
    """Split within rows between eight devices, a tensor is not read eight times."""
    values = random_tensors(CONFIG, np.float32, prefix="")
    write_thinker(tmp_path, CONFIG, values)
    read, preadv = [], os.preadv

    def record(file, buffers, start):
        count = preadv(file, buffers, start)
        read.append(count)
        return count

    monkeypatch.setattr(os, "preadv", record)
    mesh = jax.make_mesh((8,), ("x",))

    def spec(leaf):
        return P(*[None] * (leaf.ndim - 1), "x") if leaf.shape[-1] % 8 == 0 else P()

    shardings = jax.tree.map(
        lambda leaf: NamedSharding(mesh, spec(leaf)),
        abstract_params(thinker.declare(CONFIG), jnp.float32),
    )
    assert_same(load_params(tmp_path, CONFIG, shardings=shardings), values)
    assert sum(read) == (tmp_path / "model.safetensors").stat().st_size


def test_parts_in_blocks(tmp_path, monkeypatch):
    """Rows with a gap, cut within, in another dtype and in the stored one; blocks of two rows."""
    values = np.arange(60, dtype=np.float32).reshape(12, 5)
    path = tmp_path / "one.safetensors"
    tensorfile.write_tensors(
        path, [tensorfile.array_output("t", values.shape, values.dtype, lambda: values)]
    )
    monkeypatch.setattr(tensorfile, "BLOCK_BYTES", 2 * values[0].nbytes)
    monkeypatch.setattr(tensorfile, "_MOST_BYTES", 12)
    file = tensorfile.TensorFile(path)
    rows, fill, sizes, preadv = [], tensorfile.TensorFile._fill, [], os.preadv

    def sized(file, buffers, start):
        sizes.append(buffers[0].nbytes)
        return preadv(file, buffers, start)

    monkeypatch.setattr(os, "preadv", sized)

    def record(self, out, start):
        rows.append((start - self.headers["t"].start) // values[0].nbytes)
        return fill(self, out, start)

    monkeypatch.setattr(tensorfile.TensorFile, "_fill", record)
    indices = [np.s_[1:3, :], np.s_[10:12, 1:3], np.s_[4:9, :]]
    parts = [
        tensorfile.Part(np.full(values[index].shape, np.nan, dtype), index)
        for index, dtype in zip(indices, (BF16, np.float32, np.float32), strict=True)
    ]
    file.read("t", parts)
    for part in parts:
        np.testing.assert_array_equal(part.array, values[part.index].astype(part.array.dtype))
    assert max(sizes) == 12  # of 20 bytes a row
    assert rows == [4, 1, 9, 11]  # the rows at once, then blocks; none of the rows 3 to 8


def test_an_error_ends_the_reading(tmp_path, monkeypatch):
    write_thinker(tmp_path, CONFIG, random_tensors(CONFIG, np.float32, prefix=""))
    asked = []

    def broken(self, name, parts):
        asked.append(name)
        time.sleep(0.01)
        raise UserError("an error")

    monkeypatch.setattr(tensorfile.TensorFile, "read", broken)
    with pytest.raises(UserError, match="an error"):
        load_params(tmp_path, CONFIG)
    assert len(asked) <= 4 * checkpoint.READERS < len(tensors(thinker.declare(CONFIG)))


def test_a_file_that_becomes_shorter_while_it_is_read(tmp_path):
    path = broken(tmp_path, lambda values: None) / "model.safetensors"
    stored = Checkpoint(tmp_path)
    os.truncate(path, path.stat().st_size - 4)
    last = max(tensors(thinker.declare(CONFIG)), key=lambda one: stored.tensors[one.name][1].start)
    with pytest.raises(UserError, match="model.safetensors: truncated while it was read"):
        stored.read(last, [tensorfile.Part(np.empty(last.shape, np.float32))])


def test_no_array_is_read_ahead_of_its_turn_beyond_the_limit(tmp_path, monkeypatch):
    """With a limit of a byte, one array is read beside the one that goes to its devices."""
    values = random_tensors(CONFIG, np.float32, prefix="")
    write_thinker(tmp_path, CONFIG, values)
    monkeypatch.setattr(checkpoint, "AHEAD_BYTES", 1)
    begun, begin = [], checkpoint._read
    made, make = [], jax.make_array_from_callback
    monkeypatch.setattr(checkpoint, "_read", lambda *args: begun.append(len(made)) or begin(*args))
    monkeypatch.setattr(
        jax, "make_array_from_callback", lambda *args, **how: made.append(1) or make(*args, **how)
    )
    assert_same(load_params(tmp_path, CONFIG), values)
    assert begun == [max(number - 1, 0) for number in range(len(made))]


def test_loaded_arrays_take_over_the_host_buffer(tmp_path):
    """On a CPU no second copy is made, so memory stays near the size of the parameters."""
    buffer = tensorfile.empty_aligned((3, 5), BF16)
    assert buffer.ctypes.data % 64 == 0
    assert jax.device_put(buffer).unsafe_buffer_pointer() == buffer.ctypes.data


def test_donation_of_replicas_is_safe(tmp_path):
    """Replicas on a CPU share one host buffer; a donated update must write into it only once."""
    values = random_tensors(CONFIG, np.float32, prefix="")
    write_thinker(tmp_path, CONFIG, values)
    mesh = jax.make_mesh((8,), ("x",))
    shardings = jax.tree.map(
        lambda _: NamedSharding(mesh, P()), abstract_params(thinker.declare(CONFIG), jnp.float32)
    )
    params = load_params(tmp_path, CONFIG, shardings=shardings)
    twice = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(params)
    assert_same(twice, {name: 2 * value for name, value in values.items()})


def test_blocks_of_a_large_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "BLOCK_BYTES", 1000)
    values = random_tensors(CONFIG, np.float32, prefix="")
    write_thinker(tmp_path, CONFIG, values)
    assert_same(load_params(tmp_path, CONFIG), values)


# ---- broken checkpoints: one line each, naming file and tensor -----------------------------------

NAME = "visual.blocks.1.attn.k.weight"


def broken(tmp_path, change, files=1):
    values = random_tensors(CONFIG, np.float32, prefix="")
    values = change(values) or values
    write_thinker(tmp_path, CONFIG, values, files)
    return tmp_path


def message(folder, dtype=None) -> str:
    with pytest.raises(UserError) as error:
        load_params(folder, CONFIG, dtype)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_missing_tensor(tmp_path):
    text = message(broken(tmp_path, lambda values: values.pop(NAME) is None))
    assert f"model.safetensors: tensor {NAME} is missing;" in text


def test_missing_tensors_are_counted(tmp_path):
    def change(values):
        return {
            name: value for name, value in values.items() if not name.startswith("visual.blocks.1.")
        }

    assert "visual.blocks.1.norm1.weight is missing (and 15 more)" in message(
        broken(tmp_path, change, files=2)
    )


def test_wrong_shape(tmp_path):
    text = message(broken(tmp_path, lambda values: values | {NAME: np.zeros((64, 32), np.float32)}))
    assert f"tensor {NAME} has shape [64, 32], but config.json asks for [64, 64]" in text


def test_unknown_tensor(tmp_path):
    text = message(
        broken(
            tmp_path, lambda values: values | {"visual.surprise.weight": np.zeros(3, np.float32)}
        )
    )
    assert "model.safetensors: unknown tensor visual.surprise.weight" in text


def test_duplicated_tensor(tmp_path):
    text = message(broken(tmp_path, lambda values: values | {f"thinker.{NAME}": values[NAME]}))
    assert f"tensor thinker.{NAME} is duplicated" in text or f"tensor {NAME} is duplicated" in text


def test_name_twice_in_a_header(tmp_path):
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = f'{{"a": {json.dumps(one)}, "a": {json.dumps(one)}}}'.encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "tensor a is duplicated" in message(tmp_path)


def test_integer_tensor(tmp_path):
    text = message(broken(tmp_path, lambda values: values | {NAME: np.zeros((64, 64), np.int32)}))
    assert f"tensor {NAME} has dtype I32" in text


def test_layers_of_two_dtypes(tmp_path):
    folder = broken(tmp_path, lambda values: values | {NAME: values[NAME].astype(BF16)})
    assert f"tensor {NAME} has dtype BF16" in message(folder)
    assert load_params(folder, CONFIG, "float32")["lm_head"]["weight"].dtype == jnp.float32


@pytest.mark.parametrize("keep", [0, 5, 1000, -1000])
def test_truncated_file(tmp_path, keep):
    path = broken(tmp_path, lambda values: None) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path}: truncated" in message(tmp_path)


def test_not_a_safetensors_file(tmp_path):
    path = broken(tmp_path, lambda values: None) / "model.safetensors"
    path.write_bytes((40).to_bytes(8, "little") + b"version https://git-lfs.github.com/spec/")
    assert f"{path}: not a safetensors file" in message(tmp_path)


def test_tensor_that_does_not_fill_its_bytes(tmp_path):
    header = b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 4]}}'
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(4)
    )
    assert "tensor a: F32[3] does not fill its 4 bytes" in message(tmp_path)


def test_index_names_an_absent_file(tmp_path):
    folder = broken(tmp_path, lambda values: None, files=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "names model-00002-of-00003.safetensors, which is absent" in message(folder)


def test_index_contradicts_a_file(tmp_path):
    folder = broken(tmp_path, lambda values: None, files=2)
    write_tensors(folder, {})
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors does not hold the tensor" in message(folder)


def test_index_without_a_map(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert "weight_map is missing" in message(tmp_path)


def test_no_tensors(tmp_path):
    assert "holds neither model.safetensors nor model.safetensors.index.json" in message(tmp_path)


def test_unknown_dtype(tmp_path):
    assert "dtype must be 'float32' or 'bfloat16', got 'float16'" in message(tmp_path, "float16")


# ---- where a checkpoint is -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "text"),
    [
        ("no/such/dir", "no such directory"),
        ("", "checkpoint is empty"),
        (__file__, "is a file"),
        ("/absent", "no such directory"),
    ],
)
def test_no_checkpoint(checkpoint, text):
    with pytest.raises(UserError, match=text):
        resolve_checkpoint(checkpoint)


def test_a_renamed_repository_is_named(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def fail(*args, **kwargs):
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="another name there, Memories-ai/UGC-VideoCaptioner$"):
        resolve_checkpoint("openinterx/UGC-VideoCaptioner")
    with pytest.raises(UserError, match="that you can read on the hub$"):
        resolve_checkpoint("Qwen/Qwen2.5-Omni-3B")


def test_hub_without_network(monkeypatch):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise ConnectionError("cannot connect to host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as error:
        load_params("Qwen/Qwen2.5-Omni-3B", CONFIG)
    text = str(error.value)
    assert text.startswith(
        "Qwen/Qwen2.5-Omni-3B: no such directory, "
        "and its download from the hub failed (cannot connect"
    )
    assert "\n" not in text


def test_hub_download(monkeypatch, tmp_path):
    import huggingface_hub

    values = random_tensors(CONFIG, np.float32, prefix="")
    write_thinker(tmp_path, CONFIG, values)
    asked = {}

    def download(repo, **kwargs):
        asked.update(kwargs, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(load_params(resolve_checkpoint("org/name", "main"), CONFIG), values)
    assert (asked["repo"], asked["revision"]) == ("org/name", "main")
    assert "*.safetensors" in asked["allow_patterns"]
    resolve_checkpoint("org/name", weights=False)
    assert asked["allow_patterns"] == ["*.json", "*.jinja", "*.txt", "README.md"]
