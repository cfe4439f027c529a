"""The shapes of the weights: programs are planned with them, or compiled while weights are read."""

import functools
from collections.abc import Iterator

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from ugc_jax.models.compute import Compute
from ugc_jax.models.int8 import SCALE, quantized
from ugc_jax.models.params import Leaf, abstract_params, build_tree, get_leaf, leaves, logical_axes
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.sharding import abstract, replicated, shardings


def abstract_weights(
    model: OmniConfig, compute: Compute, mesh: Mesh | None = None, platform: str | None = None
) -> dict:
    """Return the parameters as the captioner holds them, as jax.ShapeDtypeStructs with shardings.

    mesh: None: this process's first device. platform: "cpu", "gpu" or "tpu", whose form they have;
    None: that of the devices. On a mesh of several devices, products of the same vectors are apart,
    as on a TPU; elsewhere the captioner joins those that are not split.
    """
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    everywhere = SingleDeviceSharding(device) if mesh is None else replicated(mesh)
    platform = platform or device.platform
    on_cpu, of_tpu, declared = platform == "cpu", platform == "tpu", thinker.declare(model)
    trees = {}
    for stacked in {not on_cpu, of_tpu}:  # encoders, decoder
        shapes = abstract_params(declared, compute.dtype, stacked)
        split = jax.tree.map(lambda _: everywhere, shapes)
        if mesh is not None:
            split = shardings(mesh, shapes, logical_axes(declared, stacked))
        shapes = abstract(shapes, split)
        trees[stacked] = build_tree(
            item
            for leaf in leaves(declared, stacked)
            for item in _items(leaf, get_leaf(shapes, leaf.path), compute.weights == "int8")
        )
    params = {**trees[not on_cpu], "model": trees[of_tpu]["model"]}
    if of_tpu or mesh is not None and mesh.size > 1:
        return params
    decoding = functools.partial(thinker.for_decoding, platform=platform)
    shapes = jax.eval_shape(decoding, params)
    return abstract(shapes, jax.tree.map(lambda _: everywhere, shapes))


def _items(leaf: Leaf, array, in_int8: bool) -> Iterator[tuple[tuple, jax.ShapeDtypeStruct]]:
    """The (path, shape) of a leaf, and of its scales in int8."""
    if in_int8 and thinker.is_decoding_matrix(leaf):
        array, scale = quantized(array)
        yield (*leaf.path[:-1], SCALE), scale
    yield leaf.path, array
