"""Settings of how a model runs."""

import pytest

from ugc_jax.errors import UserError
from ugc_jax.models.compute import Compute


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"remat": "all"}, {"attention": "flash"}])
def test_a_way_to_compute_that_does_not_exist(change):
    (name, value), *_ = change.items()
    with pytest.raises(UserError, match=f"{name} is '{value}'; use one of "):
        Compute(**change)
