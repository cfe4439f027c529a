"""Kernels and copies in a profile: of this CPU, and of devices described in text."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from ugc_jax.plan.profile import Event, activity, device_events, is_copy, read_profile


def profile_of(plane: str, lines: dict[str, list[tuple[str, int]]]) -> ProfileData:
    """A profile with one plane; of each line, (name of an event, microseconds)."""
    names = sorted({name for events in lines.values() for name, _ in events})
    ids = {name: number + 1 for number, name in enumerate(names)}
    text = "".join(
        f'event_metadata {{ key: {i} value {{ id: {i} name: "{name}" }} }}'
        for name, i in ids.items()
    )
    for line, events in lines.items():
        inner = "".join(
            f"events {{ metadata_id: {ids[name]} duration_ps: {micros * 1_000_000} }}"
            for name, micros in events
        )
        text += f'lines {{ name: "{line}" {inner} }}'
    text = f'planes {{ name: "{plane}" {text} }} planes {{ name: "/host:CPU" }}'
    return ProfileData.from_serialized_xspace(ProfileData.text_proto_to_serialized_xspace(text))


def test_a_gpu():
    profile = profile_of(
        "/device:GPU:0",
        {
            "Stream #13(Compute)": [
                ("gemm_fusion_dot_3", 30), ("gemm_fusion_dot_4", 50),
                ("loop_dynamic_slice_fusion_2", 7), ("input_reduce_fusion", 5),
                ("loop_dynamic_update_slice_fusion", 2),
            ],
            "Stream #14(MemcpyD2D,MemcpyD2H)": [("MemcpyD2D", 3), ("MemcpyD2H", 1)],
            "XLA Ops": [("gemm_fusion_dot_3", 30)],  # the same again
        },
    )  # fmt: skip
    found = activity(device_events(profile), largest=1)
    assert (found.kernels, found.copies, found.transfers) == (4, 2, 1)
    assert found.busy_seconds == pytest.approx(98e-6)
    assert found.copy_seconds == pytest.approx(10e-6)
    ((name, count, seconds),) = found.largest
    assert (name, count) == ("gemm_fusion_dot", 2)
    assert seconds == pytest.approx(80e-6)


def test_a_tpu_whose_loops_contain_other_events():
    ops = [("%while.3", 90), ("%fusion.20", 50), ("%copy.61", 4), ("%copy-start.7", 1)]
    lines = {"XLA Modules": [("jit__advance", 100)], "XLA Ops": ops}
    found = activity(device_events(profile_of("/device:TPU:0", lines)))
    assert (found.kernels, found.copies) == (1, 2)
    assert found.busy_seconds == pytest.approx(55e-6)


@pytest.mark.parametrize(
    ("name", "copies"),
    [
        ("MemcpyD2D", True),
        ("copy.12", True),
        ("wrapped_slice", True),
        ("loop_dynamic_slice_fusion", True),
        ("dynamic-slice_fusion.3", True),
        ("input_transpose_fusion_1", True),
        ("loop_dynamic_update_slice_fusion", False),
        ("loop_add_copy_fusion", False),
        ("fusion.12", False),
        ("dot.7", False),
    ],
)
def test_names_of_copies(name, copies):
    assert is_copy(name) == copies


def test_this_cpu(tmp_path):
    layers, x = jnp.ones((6, 64, 64)), jnp.ones((4, 64))
    run = jax.jit(lambda w, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0])
    jax.block_until_ready(run(layers, x))
    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(run(layers, x))
    events = list(device_events(read_profile(tmp_path)))
    assert not [event for event in events if event.name.startswith("while")]
    assert activity(events).kernels >= 6


def test_without_a_profile(tmp_path):
    assert read_profile(tmp_path) is None
    assert activity([]).kernels == 0
    assert activity([Event("x", 1.0)]).kernels == 1
