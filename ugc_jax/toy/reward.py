"""The reward of the synthetic world: a caption is checked word for word. `jobs/grpo.py` adds it."""

from ugc_jax.toy.world import attribute_f1


def attributes(prompt: str, completion: str, reference: str | None, metadata: dict) -> float:
    """F1 of the attributes that the completion states. ValueError for a row without them."""
    if "attributes" not in metadata:
        raise ValueError("the row has no attributes (only rows of the world have)")
    return attribute_f1(completion, metadata["attributes"])


REWARDS = {"attributes": attributes}
