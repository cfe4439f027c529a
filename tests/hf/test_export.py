"""Export: HF -> JAX -> HF keeps every bit, thinker only and merged, and transformers loads it."""

import json
from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from fake_checkpoints import random_tensors, write_full, write_thinker
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ugc_jax.errors import EnvironmentFailure, UserError
from ugc_jax.hf import mapping
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.hf.export import new_directory, save_merged, save_orbax, save_thinker
from ugc_jax.hf.reference import reference_inputs
from ugc_jax.hf.tensorfile import TensorFile
from ugc_jax.models.compute import Compute
from ugc_jax.models.params import abstract_params, build_tree, leaves, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import mid, tiny
from ugc_jax.models.qwen2_5_omni.tokens import CHAT_TEMPLATE

CONFIG = tiny()
BF16 = np.dtype(ml_dtypes.bfloat16)


def stored(folder: Path) -> dict[str, tuple[str, tuple, bytes]]:
    """{name: (dtype, shape, bytes)} of every tensor of a directory."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        for name, header in TensorFile(path).headers.items():
            assert name not in found
            found[name] = (
                header.code,
                header.shape,
                content[header.start : header.start + header.nbytes],
            )
    return found


def without_prefix(tensors: dict) -> dict:
    return {
        name.removeprefix("thinker."): value
        for name, value in tensors.items()
        if mapping.canonical_name(name) is not None
    }


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("stacked", [True, False])
def test_thinker_round_trip_is_bitwise(tmp_path, dtype, stacked):
    write_full(tmp_path / "full", CONFIG, dtype)
    params = load_params(tmp_path / "full", CONFIG, stacked=stacked)
    save_thinker(params, CONFIG, tmp_path / "out", tmp_path / "full", max_shard_bytes=1e6)
    assert stored(tmp_path / "out") == without_prefix(stored(tmp_path / "full"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {tensor.name for tensor in tensors(thinker.declare(CONFIG))}
    assert index["metadata"]["total_size"] == sum(
        len(data) for *_, data in stored(tmp_path / "out").values()
    )
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.stat().st_size < 1.1e6
    again = load_params(tmp_path / "out", CONFIG, stacked=stacked)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: a.dtype == b.dtype and bool(jnp.all(a == b)), params, again)
    )


def test_thinker_keeps_the_sources_files(tmp_path):
    write_full(tmp_path / "full", CONFIG)
    save_thinker(
        load_params(tmp_path / "full", CONFIG),
        CONFIG,
        tmp_path / "out",
        tmp_path / "full",
        dtype="float32",
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer_config.json",
    }
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    ids = {"bos_token_id": 2001, "eos_token_id": 2002, "pad_token_id": 2000}
    assert generation == ids | {"thinker_max_new_tokens": 1024}
    assert content["user_token_id"] == 872  # a field that only the source has
    assert content["dtype"] == "float32"
    assert {code for code, *_ in stored(tmp_path / "out").values()} == {"F32"}
    assert load_config(tmp_path / "out") == CONFIG


def test_sharded_parameters_are_put_together(tmp_path):
    write_thinker(tmp_path / "in", CONFIG, random_tensors(CONFIG, np.float32, prefix=""))
    mesh = jax.make_mesh((2, 4), ("layer", "column"))

    def spec(leaf):
        return P(
            "layer", *[None] * (len(leaf.shape) - 2), "column" if leaf.shape[-1] % 4 == 0 else None
        )

    shardings = build_tree(
        (leaf.path, NamedSharding(mesh, spec(leaf) if leaf.is_stacked else P()))
        for leaf in leaves(thinker.declare(CONFIG))
    )
    params = load_params(tmp_path / "in", CONFIG, shardings=shardings)
    save_thinker(params, CONFIG, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(tmp_path / "in")


def test_transformers_loads_the_thinker(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers").Qwen2_5OmniThinkerForConditionalGeneration
    write_full(tmp_path / "full", CONFIG)
    save_thinker(
        load_params(tmp_path / "full", CONFIG),
        CONFIG,
        tmp_path / "out",
        tmp_path / "full",
        max_shard_bytes=1e6,
    )
    model, report = theirs.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id == CONFIG.tokens.eos_token_id
    expected = stored(tmp_path / "out")
    for name, value in model.state_dict().items():
        assert (
            value.view(torch.int16).numpy().tobytes() == expected[mapping.canonical_name(name)][2]
        ), name


# ---- full, without a full source -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_holds_the_thinker_under_its_prefix(whole_checkpoint, tmp_path, dtype):
    params = load_params(whole_checkpoint, CONFIG, dtype)
    save_thinker(params, CONFIG, tmp_path / "out", whole_checkpoint, max_shard_bytes=1e6, full=True)
    save_thinker(params, CONFIG, tmp_path / "thinker", whole_checkpoint)
    expected = stored(tmp_path / "thinker")
    assert stored(tmp_path / "out") == {f"thinker.{name}": x for name, x in expected.items()}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(stored(tmp_path / "out"))
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert content["architectures"] == ["Qwen2_5OmniForConditionalGeneration"]
    assert content["model_type"] == "qwen2_5_omni"
    assert content["enable_audio_output"] is False
    assert content["dtype"] == content["thinker_config"]["dtype"] == dtype
    assert load_config(tmp_path / "out") == CONFIG
    again = load_params(tmp_path / "out", CONFIG)
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_full_keeps_the_sources_files_and_adds_what_is_missing(tmp_path):
    write_full(tmp_path / "full", CONFIG)  # has a preprocessor, no template
    params = load_params(tmp_path / "full", CONFIG)
    save_thinker(params, CONFIG, tmp_path / "first", tmp_path / "full", full=True)
    assert {path.name for path in (tmp_path / "first").iterdir()} == {
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "preprocessor_config.json", "spk_dict.pt", "tokenizer_config.json",
    }  # fmt: skip
    content = json.loads((tmp_path / "first" / "config.json").read_text())
    assert content["thinker_config"]["user_token_id"] == 872  # a field that only the source has
    assert (tmp_path / "first" / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    (tmp_path / "first" / "chat_template.jinja").write_text("its own")
    save_thinker(params, CONFIG, tmp_path / "second", tmp_path / "first", full=True)
    assert (tmp_path / "second" / "chat_template.jinja").read_text() == "its own"
    for folder in ("first", "second"):
        name = "preprocessor_config.json"
        assert (tmp_path / folder / name).read_bytes() == (tmp_path / "full" / name).read_bytes()


@pytest.mark.usefixtures("highest_precision")
def test_transformers_loads_the_full_model(whole_checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers").Qwen2_5OmniForConditionalGeneration
    params = load_params(whole_checkpoint, CONFIG)
    save_thinker(params, CONFIG, tmp_path / "out", whole_checkpoint, full=True)
    model = theirs.from_pretrained(tmp_path / "out").eval()
    assert not model.has_talker
    expected = stored(tmp_path / "out")
    names = set()
    for name, value in model.state_dict().items():
        names.add("thinker." + mapping.canonical_name(name))
        data = expected["thinker." + mapping.canonical_name(name)][2]
        assert value.numpy().tobytes() == data, name
    assert names == set(expected)

    parts = cases.CASES["video_with_sound"]
    example = cases.make_example(CONFIG, parts)
    seconds = [cases.SECONDS_PER_GRID] * cases.videos(parts)
    inputs = reference_inputs([example], CONFIG, seconds, cases.has_sound_in_video(parts))
    with torch.inference_mode():
        theirs = model.thinker(**inputs).logits[0].numpy()
        video = dict(inputs, use_audio_in_video=True)
        # Its own generate() asks the talker for a token id, in text mode, too.
        out = model.thinker.generate(**video, max_new_tokens=5, do_sample=False)
    assert out.shape == (1, len(example.tokens) + 5)
    hidden = thinker.hidden_states(params, CONFIG, Compute(), cases.one_batch(CONFIG, [example]))
    ours = thinker.logits(thinker.head(params), hidden[0, : len(example.tokens)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * abs(theirs).max())


def test_processors_of_transformers_read_the_added_files(whole_checkpoint, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pil = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    params = load_params(whole_checkpoint, CONFIG)
    save_thinker(params, CONFIG, tmp_path / "out", whole_checkpoint, full=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.image_token == "<|IMAGE|>"
    assert "<|im_start|>user\nHi" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
    sound = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "out")
    assert (sound.feature_size, sound.n_samples, sound.nb_max_frames) == (128, 4_800_000, 30_000)
    assert sound.padding_side == "right"
    picture = pil.Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "out")
    assert dict(picture.size) == {"shortest_edge": 3136, "longest_edge": 12845056}
    assert (picture.patch_size, picture.merge_size, picture.temporal_patch_size) == (14, 2, 2)


# ---- merged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 3])
def test_merge_of_unchanged_parameters_is_the_source(tmp_path, files):
    write_full(tmp_path / "full", CONFIG, files=files)
    save_merged(
        load_params(tmp_path / "full", CONFIG, "float32"),
        CONFIG,
        tmp_path / "full",
        tmp_path / "out",
    )
    assert stored(tmp_path / "out") == stored(tmp_path / "full")
    source = {path.relative_to(tmp_path / "full") for path in (tmp_path / "full").rglob("*")}
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")} == source
    for name in ("config.json", "spk_dict.pt", "assets/picture.bin", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "full" / name).read_bytes()
    if files > 1:
        indexes = [
            json.loads((tmp_path / x / "model.safetensors.index.json").read_text())
            for x in ("full", "out")
        ]
        assert indexes[0] == indexes[1]


def test_merge_changes_the_thinker_only(tmp_path):
    write_full(tmp_path / "full", CONFIG)
    params = jax.tree.map(lambda x: x + 1, load_params(tmp_path / "full", CONFIG, "float32"))
    save_merged(params, CONFIG, tmp_path / "full", tmp_path / "out")
    before, after = stored(tmp_path / "full"), stored(tmp_path / "out")
    assert list(before) == list(after)
    for name, (code, shape, data) in before.items():
        assert after[name][:2] == (code, shape)
        if mapping.canonical_name(name) is None:
            assert after[name][2] == data, name
        else:
            expected = np.frombuffer(data, BF16).astype(np.float32) + 1
            assert after[name][2] == expected.astype(BF16).tobytes(), name


def test_transformers_loads_the_thinker_of_a_merged_checkpoint(tmp_path):
    pytest.importorskip("torch")
    theirs = pytest.importorskip("transformers").Qwen2_5OmniThinkerForConditionalGeneration
    write_full(tmp_path / "full", CONFIG)
    save_merged(load_params(tmp_path / "full", CONFIG), CONFIG, tmp_path / "full", tmp_path / "out")
    model, report = theirs.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    model.save_pretrained(tmp_path / "saved")  # with the prefix `thinker.`, spec 1.1
    names = {mapping.canonical_name(name) for name in stored(tmp_path / "saved")}
    assert names == {tensor.name for tensor in tensors(thinker.declare(CONFIG))}


def test_merge_into_the_wrong_base(tmp_path):
    write_thinker(tmp_path / "thinker", CONFIG, random_tensors(CONFIG, np.float32))
    params = load_params(tmp_path / "thinker", CONFIG)
    with pytest.raises(UserError, match="holds no talker"):
        save_merged(params, CONFIG, tmp_path / "thinker", tmp_path / "out")
    with pytest.raises(UserError, match="describes another thinker"):
        save_merged(params, mid(), tmp_path / "thinker", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Orbax ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_orbax_round_trip(tmp_path, stacked, dtype):
    values = random_tensors(CONFIG, BF16, prefix="")
    write_thinker(tmp_path / "in", CONFIG, values)
    save_orbax(load_params(tmp_path / "in", CONFIG), CONFIG, tmp_path / "store", tmp_path / "in")
    assert load_config(tmp_path / "store") == CONFIG
    params = load_params(tmp_path / "store", CONFIG, dtype, stacked)
    assert isinstance(params["visual"]["blocks"], dict if stacked else tuple)
    for tensor in tensors(thinker.declare(CONFIG)):
        expected = values[tensor.name].astype(dtype or BF16)
        actual = mapping.read_tensor(params, tensor)
        assert actual.dtype == expected.dtype
        assert actual.tobytes() == expected.tobytes(), tensor.name


def test_orbax_loads_sharded(tmp_path):
    values = random_tensors(CONFIG, np.float32, prefix="")
    write_thinker(tmp_path / "in", CONFIG, values)
    save_orbax(load_params(tmp_path / "in", CONFIG), CONFIG, tmp_path / "store")
    mesh = jax.make_mesh((8,), ("x",))
    shardings = jax.tree.map(
        lambda _: NamedSharding(mesh, P()), abstract_params(thinker.declare(CONFIG), jnp.float32)
    )
    shardings["lm_head"]["weight"] = NamedSharding(mesh, P("x"))
    params = load_params(tmp_path / "store", CONFIG, shardings=shardings)
    assert params["lm_head"]["weight"].sharding == shardings["lm_head"]["weight"]
    assert np.array_equal(params["lm_head"]["weight"], values["lm_head.weight"])


def test_orbax_of_another_model(tmp_path):
    write_thinker(tmp_path / "in", CONFIG, random_tensors(CONFIG, np.float32, prefix=""))
    save_orbax(load_params(tmp_path / "in", CONFIG), CONFIG, tmp_path / "store")
    with pytest.raises(UserError, match=r"tensor model.embed_tokens.weight has shape \[2048, 64\]"):
        load_params(tmp_path / "store", mid())


# ---- all or nothing ------------------------------------------------------------------------------


def test_refuses_what_is_there(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    with new_directory(folder, overwrite=False) as partial:  # an empty directory is taken
        (partial / "config.json").write_text("old")
    with (
        pytest.raises(UserError, match="is not empty; name another output, or add --overwrite"),
        new_directory(folder, False),
    ):
        pass
    with new_directory(folder, overwrite=True) as partial:
        (partial / "config.json").write_text("new")
    assert (folder / "config.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrites_checkpoints_only(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(UserError, match="holds other things than a checkpoint"),
        new_directory(tmp_path, True),
    ):
        pass
    with pytest.raises(UserError, match="is a file"), new_directory(tmp_path / "thesis.txt", True):
        pass
    assert (tmp_path / "thesis.txt").exists()


def _fail_halfway(folder, error):
    with new_directory(folder, overwrite=True) as partial:
        (partial / "config.json").write_text("half")
        raise error


@pytest.mark.parametrize(
    "error", [UserError("stop"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_a_failure_leaves_the_old_directory(tmp_path, error):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    is_full = isinstance(error, OSError)  # becomes a line
    seen = EnvironmentFailure if is_full else type(error)
    with pytest.raises(seen, match="the disk is full" if is_full else None):
        _fail_halfway(folder, error)
    assert (folder / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_checkpoint_may_be_overwritten_by_itself(tmp_path):
    """The source's files are mapped until the new ones are complete."""
    write_full(tmp_path / "full", CONFIG)
    before = stored(tmp_path / "full")
    params = load_params(tmp_path / "full", CONFIG)
    save_merged(params, CONFIG, tmp_path / "full", tmp_path / "full", overwrite=True)
    assert stored(tmp_path / "full") == before
