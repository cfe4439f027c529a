"""The state of a training run and its shardings on the mesh.

The model's parameter tree is split into two pruned trees of the same form: the trained `params` in
the master dtype, and `frozen`, in the compute dtype. `model_params` joins them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from ugc_jax import sharding
from ugc_jax.errors import UserError
from ugc_jax.models import lora
from ugc_jax.models.compute import Compute
from ugc_jax.models.lora import LoraConfig
from ugc_jax.models.params import abstract_params, logical_axes
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig
from ugc_jax.train.optimizer import OptimizerConfig, group_of, make_optimizer


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parts are trained. Others are frozen: in the compute dtype, without optimizer state."""

    vision: bool = False  # the vision encoder
    audio: bool = False  # the audio encoder
    projector: bool = False  # the vision encoder's merger and the audio encoder's projection
    decoder: bool = True  # the decoder's layers
    embeddings: bool = True  # the token embeddings and the head

    def includes(self, path) -> bool:
        """Return whether the leaf at `path` is trained; the leaves of an adapter always are."""
        group = group_of(path)
        return group == "lora" or getattr(self, group)


class TrainState(NamedTuple):
    """A pytree.

    step: i32[], updates made. params: the trained leaves (with an adapter, its leaves), nested
    dict. frozen: all others, nested dict. opt_state: of `make_optimizer`, float32 but for a mean
    in optimizer.mu_dtype. finite: bool[], False from the first step on whose loss or gradient was
    not finite; then nothing changes.
    reference: with Setup.reference, the reference policy of GRPO: the initial values of the trained
    leaves, except an adapter's, in the compute dtype. Else {}.
    """

    step: jax.Array
    params: dict
    frozen: dict
    opt_state: optax.OptState
    finite: jax.Array
    reference: dict = {}


@dataclasses.dataclass(frozen=True)
class Setup:
    """Determines the train step's program, together with the batch's shape.

    steps: updates of the whole run, for the learning rate's schedule.
    accumulate: microbatches of a batch, which pass through the model one after the other.
    master: dtype of the trained weights. In "bfloat16" they take half the memory, but updates
      below 1/256 of a weight are lost.
    reference: whether the state also has a reference policy. Raises UserError if nothing would be
    trained, and for an adapter on a trained decoder.
    """

    model: OmniConfig
    mesh: Mesh
    compute: Compute = Compute()
    trainable: Trainable = Trainable()
    lora: LoraConfig = LoraConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 1000
    accumulate: int = 1
    master: Literal["float32", "bfloat16"] = "float32"
    reference: bool = False

    def __post_init__(self):
        if self.lora.rank and self.trainable.decoder:
            raise UserError(
                "lora.rank and trainable.decoder are both set; set trainable.decoder=false"
            )
        if not self.lora.rank and not any(dataclasses.asdict(self.trainable).values()):
            raise UserError("trainable: nothing learns; set one of its fields or lora.rank")

    @functools.cached_property
    def transform(self) -> optax.GradientTransformation:
        """The optimizer."""
        return make_optimizer(self.optimizer, self.steps, model_axes(self))


def create_state(params: dict, setup: Setup, seed: int = 0) -> TrainState:
    """Return the state before the first step, from the whole stacked parameter tree, on the mesh.

    params: donated; the state reuses their buffers where they fit. seed: of an adapter.
    """
    make = functools.partial(_initial, setup=setup, seed=seed)
    with jax.set_mesh(setup.mesh):
        return jax.jit(make, out_shardings=state_shardings(setup), donate_argnums=0)(params)


def state_shardings(setup: Setup) -> TrainState:
    """Return the NamedSharding of each leaf of the state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract_state(setup))


def abstract_state(setup: Setup) -> TrainState:
    """Return the state's shapes, dtypes and shardings, to restore into and to compile with."""
    params = abstract_params(thinker.declare(setup.model), setup.compute.dtype)
    shapes = jax.eval_shape(functools.partial(_initial, setup=setup, seed=0), params)
    leaf_shardings = functools.partial(sharding.shardings, setup.mesh)
    learns, frozen = _partition(model_axes(setup), setup.trainable.includes)
    whole = sharding.replicated(setup.mesh)
    params_shardings = leaf_shardings(shapes.params, learns)
    state_shardings = TrainState(
        step=whole,
        params=params_shardings,
        frozen=leaf_shardings(shapes.frozen, frozen),
        opt_state=optax.tree_utils.tree_map_params(
            setup.transform,
            # Moments are split as their parameter; Adafactor's factors are small.
            lambda leaf, param, split: split if leaf.shape == param.shape else whole,
            shapes.opt_state,
            shapes.params,
            params_shardings,
            transform_non_params=lambda _: whole,
        ),
        finite=whole,
        reference=leaf_shardings(shapes.reference, _partition(learns, _is_lora)[1])
        if setup.reference
        else {},
    )
    return sharding.abstract(shapes, state_shardings)


def model_params(state: TrainState, setup: Setup) -> dict:
    """Return the model's whole tree (stacked) in the compute dtype, with an adapter's leaves.

    Traceable. The embeddings and the head, if trained, keep the master dtype, so that the sums of
    their gradients over tokens and chunks have it, too.
    """
    learns = jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            leaf if group_of(path) == "embeddings" else leaf.astype(setup.compute.dtype)
        ),
        state.params,
    )
    adapter, weights = _partition(learns, _is_lora)
    whole = _join(weights, state.frozen)
    return lora.combine(whole, adapter, setup.lora) if setup.lora.rank else whole


def reference_params(state: TrainState, setup: Setup) -> dict:
    """Return the whole tree (stacked) of the reference policy, in the compute dtype.

    Traceable. It has no adapter: where only an adapter is trained, it shares all leaves.
    """
    if not setup.reference:
        raise ValueError("the setup keeps no reference")
    return _join(state.reference, state.frozen)


def merged_params(
    state: TrainState, setup: Setup, dtype: str | None = None, stored: dict | None = None
) -> dict:
    """Return the model's whole tree (stacked), an adapter merged into its weights, to export.

    Traceable. Trained leaves have the master dtype, weights with an adapter `dtype` (None: as the
    others), others the compute dtype or that of `stored`.
    stored: the tree that training started from. A frozen weight takes its value from there, if that
    is the one which the compute dtype has rounded.
    """
    adapter, weights = _partition(state.params, _is_lora)
    frozen = flatten_dict(state.frozen)
    if stored is not None:
        finer = flatten_dict(stored)
        for path, rounded in frozen.items():
            is_same = finer[path].astype(rounded.dtype) == rounded
            frozen[path] = jnp.where(is_same, finer[path], rounded.astype(finer[path].dtype))
    whole = _join(weights, unflatten_dict(frozen))
    return lora.merge(whole, adapter, setup.lora, dtype) if setup.lora.rank else whole


def _initial(params: dict, *, setup: Setup, seed: int) -> TrainState:
    if setup.lora.rank:
        adapter = lora.init(setup.model, setup.lora, jax.random.key(seed))
        params = _join(params, adapter)
    learns, frozen = _partition(params, setup.trainable.includes)
    learns = jax.tree.map(lambda leaf: leaf.astype(setup.master), learns)
    # A copy also in the same dtype: each step donates the parameters' buffers.
    reference = jax.tree.map(
        lambda leaf: jnp.array(leaf, setup.compute.dtype, copy=True),
        _partition(learns, _is_lora)[1] if setup.reference else {},
    )
    # Moments are float32 for either master dtype, but for mu_dtype.
    moments = setup.transform.init(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), learns))
    return TrainState(
        step=jnp.int32(0),
        params=learns,
        frozen=jax.tree.map(lambda leaf: leaf.astype(setup.compute.dtype), frozen),
        opt_state=moments,
        finite=jnp.bool_(True),
        reference=reference,
    )


def model_axes(setup: Setup) -> dict:
    """Return the tree of `model_params` with logical axes as leaves."""
    axes = logical_axes(thinker.declare(setup.model))
    if setup.lora.rank:
        axes = _join(axes, logical_axes(lora.declare(setup.model, setup.lora)))
    return axes


def _partition(tree: dict, chosen: Callable[[tuple[str, ...]], bool]) -> tuple[dict, dict]:
    """Return (the leaves whose path is chosen, the others), both pruned."""
    parts = {}, {}
    for path, leaf in flatten_dict(tree).items():
        parts[0 if chosen(path) else 1][path] = leaf
    return unflatten_dict(parts[0]), unflatten_dict(parts[1])


def _join(*trees: dict) -> dict:
    flat = {}
    for tree in trees:
        flat |= flatten_dict(tree)
    return unflatten_dict(flat)


def _is_lora(path) -> bool:
    return path[-1] in lora.LEAVES
