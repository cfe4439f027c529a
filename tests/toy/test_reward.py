"""ugc_jax.toy.reward: the F1 of attributes, on captions that are worked out by hand."""

import pytest

from ugc_jax.toy import world
from ugc_jax.toy.reward import REWARDS
from ugc_jax.toy.world import attribute_f1


def test_attributes():
    attributes = {name: values[0] for name, values in world.VALUES.items()}
    caption = world.write_caption(attributes, 0)
    assert attribute_f1(caption, attributes) == 1
    assert attribute_f1("Nothing to see.", attributes) == 0
    wrong = attributes | {"colour": world.VALUES["colour"][1]}
    assert attribute_f1(caption, wrong) == pytest.approx(0.9)
    # one said and right, of ten
    assert attribute_f1(f"A {attributes['shape']}.", attributes) == pytest.approx(2 / 11)
    assert REWARDS["attributes"]("What is it?", caption, None, {"attributes": attributes}) == 1


def test_a_row_without_attributes_is_no_zero():
    with pytest.raises(ValueError, match="the row has no"):
        REWARDS["attributes"]("What is it?", "A cat.", None, {})
