"""ONE invertible table between Hugging Face's tensor names and the parameter tree (spec section 1).

The tree is a plain nested dict that keeps HF's leaf names and shapes: a linear stays (out, in), a
convolution as stored. Only the three layer stacks differ: `model.layers.7.mlp.up_proj.weight` is
row 7 of the array at ("model", "layers", "mlp", "up_proj", "weight"), or, unstacked, the leaf at
("model", "layers", 7, "mlp", "up_proj", "weight") of a tree whose "layers" is a tuple of dicts.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.models.qwen2_5_omni.config import AudioConfig, OmniConfig, TextConfig, VisionConfig

Shape = tuple[int, ...]
Path = tuple[str | int, ...]

OUTSIDE_THINKER = ("talker.", "token2wav.")
# Left, the module names of transformers 5; right, those on the hub and in what 5 itself saves.
_MODULE_TREE = {
    "model.language_model.": "model.",
    "model.visual.": "visual.",
    "model.audio_tower.": "audio_tower.",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint.

    path: leads to its array in the stacked tree. layer: its row there, or None.
    """

    hf_name: str  # without the prefix `thinker.`
    path: tuple[str, ...]
    layer: int | None
    shape: Shape


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the parameter tree; `entries` fill it, in order of its leading axis."""

    path: Path
    shape: Shape
    entries: tuple[Entry, ...]
    is_stack: bool


def canonical_name(name: str) -> str | None:
    """The table's name of a tensor stored in any form of spec 1.1; None for the other models'."""
    if name.startswith(OUTSIDE_THINKER):
        return None
    name = name.removeprefix("thinker.")
    for module, hub in _MODULE_TREE.items():
        if name.startswith(module):
            return hub + name.removeprefix(module)
    return name


def entries(config: OmniConfig) -> list[Entry]:
    """Every tensor of the thinker, in the order in which exports store them."""
    table = []
    for prefix, layers, shapes in _groups(config):
        for name, shape in shapes.items():
            path = tuple(f"{prefix}{name}".split("."))
            if layers is None:
                table.append(Entry(f"{prefix}{name}", path, None, shape))
            else:
                table += [Entry(f"{prefix}{i}.{name}", path, i, shape) for i in range(layers)]
    return table


def leaves(config: OmniConfig, stacked: bool = True) -> list[Leaf]:
    """Every array of the parameter tree with the entries that fill it."""
    groups: dict[Path, list[Entry]] = {}
    for entry in entries(config):
        path: Path = entry.path
        if not stacked and entry.layer is not None:
            cut = 2  # below model.layers, visual.blocks, audio_tower.layers
            path = (*path[:cut], entry.layer, *path[cut:])
        groups.setdefault(path, []).append(entry)
    result = []
    for path, members in groups.items():
        is_stack = stacked and members[0].layer is not None
        shape = (len(members), *members[0].shape) if is_stack else members[0].shape
        result.append(Leaf(path, shape, tuple(members), is_stack))
    return result


def build_tree(items: Iterable[tuple[Path, Any]]) -> dict:
    """(path, value) pairs -> nested dict; integer keys become the items of a tuple."""
    root: dict = {}
    for path, value in items:
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return _with_tuples(root)


def abstract_params(config: OmniConfig, dtype, stacked: bool = True) -> dict:
    """The parameter tree with a jax.ShapeDtypeStruct at every leaf; dtype as jax takes it."""
    return build_tree(
        (leaf.path, jax.ShapeDtypeStruct(leaf.shape, dtype)) for leaf in leaves(config, stacked)
    )


def get_leaf(tree: dict, path: Path) -> Any:
    """The value at `path` of a nested dict."""
    for key in path:
        tree = tree[key]
    return tree


def locate(params: dict, entry: Entry) -> tuple[jax.Array, int | None]:
    """(array, row) of an entry's tensor in a stacked or unstacked tree; row None is the array."""
    node, row = params, entry.layer
    for key in entry.path:
        node = node[key]
        if isinstance(node, tuple):
            node, row = node[entry.layer], None
    return node, row


def read_tensor(params: dict, entry: Entry) -> np.ndarray:
    """The tensor of `entry` on the host, of shape `entry.shape`, out of either form of tree.

    Shards are put together layer by layer, so that no whole stack is held on the host. Raises
    UserError if other processes hold parts of it.
    """
    array, row = locate(params, entry)
    if not array.is_fully_addressable:
        raise UserError(
            f"{entry.hf_name} is spread over several processes; "
            "write Orbax there and convert that in one"
        )
    if row is None:
        return jax.device_get(array)
    out = np.empty(entry.shape, array.dtype)
    for shard in array.addressable_shards:
        first = shard.index[0].start or 0
        if shard.replica_id == 0 and first <= row < first + len(shard.data):
            out[shard.index[1:]] = shard.data[row - first]
    return out


def _with_tuples(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    children = {key: _with_tuples(child) for key, child in node.items()}
    return tuple(children[i] for i in range(len(children))) if 0 in children else children


# ---- names and shapes: spec 1.2 to 1.4 -----------------------------------------------------------


def _groups(config: OmniConfig) -> list[tuple[str, int | None, dict[str, Shape]]]:
    """(name prefix, number of layers or None, {rest of the name: shape}) of each tensor group."""
    text, vision, audio = config.text, config.vision, config.audio
    table = (text.vocab_size, text.hidden_size)
    return [
        ("model.", None, {"embed_tokens.weight": table} | _norm("norm", text.hidden_size)),
        ("model.layers.", text.num_hidden_layers, _text_layer(text)),
        ("", None, {"lm_head.weight": table}),
        ("visual.", None, _vision_ends(vision)),
        ("visual.blocks.", vision.depth, _vision_block(vision)),
        ("audio_tower.", None, _audio_ends(audio)),
        ("audio_tower.layers.", audio.encoder_layers, _audio_layer(audio)),
    ]


def _linear(name: str, out_size: int, in_size: int, bias: bool = True) -> dict[str, Shape]:
    weight = {f"{name}.weight": (out_size, in_size)}
    return weight | {f"{name}.bias": (out_size,)} if bias else weight


def _norm(name: str, size: int, bias: bool = False) -> dict[str, Shape]:
    weight = {f"{name}.weight": (size,)}
    return weight | {f"{name}.bias": (size,)} if bias else weight


def _text_layer(c: TextConfig) -> dict[str, Shape]:
    d, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return (
        _norm("input_layernorm", d)
        | _linear("self_attn.q_proj", q, d)
        | _linear("self_attn.k_proj", kv, d)
        | _linear("self_attn.v_proj", kv, d)
        | _linear("self_attn.o_proj", d, q, bias=False)
        | _norm("post_attention_layernorm", d)
        | _linear("mlp.gate_proj", c.intermediate_size, d, bias=False)
        | _linear("mlp.up_proj", c.intermediate_size, d, bias=False)
        | _linear("mlp.down_proj", d, c.intermediate_size, bias=False)
    )


def _vision_ends(c: VisionConfig) -> dict[str, Shape]:
    cell = c.hidden_size * c.spatial_merge_size**2
    kernel = (c.hidden_size, c.in_channels, c.temporal_patch_size, c.patch_size, c.patch_size)
    return (
        {"patch_embed.proj.weight": kernel}
        | _norm("merger.ln_q", c.hidden_size)
        | _linear("merger.mlp.0", cell, cell)
        | _linear("merger.mlp.2", c.out_hidden_size, cell)
    )


def _vision_block(c: VisionConfig) -> dict[str, Shape]:
    d = c.hidden_size
    shapes = _norm("norm1", d) | _norm("norm2", d)
    for name in ("q", "k", "v", "proj"):
        shapes |= _linear(f"attn.{name}", d, d)
    return (
        shapes
        | _linear("mlp.gate_proj", c.intermediate_size, d)
        | _linear("mlp.up_proj", c.intermediate_size, d)
        | _linear("mlp.down_proj", d, c.intermediate_size)
    )


def _audio_ends(c: AudioConfig) -> dict[str, Shape]:
    return {
        "conv1.weight": (c.d_model, c.num_mel_bins, 3),
        "conv1.bias": (c.d_model,),
        "conv2.weight": (c.d_model, c.d_model, 3),
        "conv2.bias": (c.d_model,),
        # stored, but never used by the reference: spec 1.4
        "audio_bos_eos_token.weight": (2, c.output_dim),
        **_norm("ln_post", c.d_model, bias=True),
        **_linear("proj", c.output_dim, c.d_model),
    }


def _audio_layer(c: AudioConfig) -> dict[str, Shape]:
    d = c.d_model
    return (
        _norm("self_attn_layer_norm", d, bias=True)
        | _linear("self_attn.q_proj", d, d)
        | _linear("self_attn.k_proj", d, d, bias=False)
        | _linear("self_attn.v_proj", d, d)
        | _linear("self_attn.out_proj", d, d)
        | _norm("final_layer_norm", d, bias=True)
        | _linear("fc1", c.encoder_ffn_dim, d)
        | _linear("fc2", d, c.encoder_ffn_dim)
    )
