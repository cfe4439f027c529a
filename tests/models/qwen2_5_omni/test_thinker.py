"""The thinker's declared tree: the counts of spec section 0, its axes and its groups."""

import math
from collections import Counter

from ugc_jax.models.params import leaves, tensors
from ugc_jax.models.qwen2_5_omni import thinker
from ugc_jax.models.qwen2_5_omni.config import omni_3b, tiny
from ugc_jax.models.qwen2_5_omni.names import GROUPS, LOOKED_UP, parameter_group
from ugc_jax.sharding import RULES


def test_3b_has_the_published_counts():
    table = tensors(thinker.declare(omni_3b()))
    counts = Counter()
    sizes = Counter()
    for tensor in table:
        part = tensor.name.split(".")[0]
        counts[part] += 1
        sizes[part] += math.prod(tensor.shape)
    assert counts == {"model": 434, "visual": 518, "audio_tower": 489, "lm_head": 1}
    assert sizes == {
        "model": 3_085_938_688,
        "lm_head": 311_164_928,
        "visual": 668_684_288,
        "audio_tower": 637_676_544,
    }
    assert len(table) == 1442
    assert sum(sizes.values()) == 4_703_464_448


def test_rules_name_every_logical_axis_of_the_model():
    names = {name for leaf in leaves(thinker.declare(tiny())) for name in leaf.axes}
    assert names - {None} <= {"layers", "vocab", "embed", "heads", "mlp"} <= RULES.keys()


def test_every_leaf_has_a_group():
    declared = leaves(thinker.declare(tiny()))
    sizes = Counter(parameter_group(leaf.path) for leaf in declared)
    assert set(sizes) == set(GROUPS)
    assert sizes["embeddings"] == 2
    # The merger's norm and two linears; the audio encoder's last norm, projection and two tokens.
    assert sizes["projector"] == 5 + 5


def test_what_is_looked_up_is_there():
    assert set(LOOKED_UP) <= {tensor.name for tensor in tensors(thinker.declare(tiny()))}
