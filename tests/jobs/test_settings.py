"""The settings of all jobs: sections are shared, and short names stay when sections are added."""

import dataclasses
import typing

import jax
import pytest

from ugc_jax import cli
from ugc_jax.errors import UserError
from ugc_jax.jobs import caption
from ugc_jax.sharding import MeshConfig

CLIP = (
    "preset fps frames min_frames max_frames min_pixels max_pixels total_pixels image_min_pixels "
    "image_max_pixels start end audio require_sound max_audio_seconds untagged_bt709 bgr system "
    "question reference_fps"
)
SAMPLING = "temperature top_k top_p repetition_penalty max_new_tokens seed"
MODEL = f"{CLIP} {SAMPLING} batch_size workers dtype remat slab attention"
TRAINING = (
    "train eval batch_size tokens learning_rate steps epochs dtype attention remat max_new_tokens"
)
# Names beside the full ones. Never remove one; names with a dot are those of earlier versions.
SHORT = {
    "init": "",
    "inspect": f"{CLIP} {SAMPLING}",
    "extract": f"{CLIP} max_tokens format quality mel",
    "select": f"{CLIP} dtype remat slab attention",
    "sft": f"{TRAINING} loop.sample_tokens data.packing",
    "grpo": (
        f"{TRAINING} samples temperature beta functions loop.eval_prompts rollout.max_new_tokens "
        "rollout.temperature rollout.top_p rollout.top_k rollout.seed rollout.data rollout.fsdp "
        "rollout.tensor"
    ),
    "plan": "train eval batch_size tokens steps epochs clip.frames clip.height clip.width",
    "caption": f"{MODEL} evidence",
    "label": (
        "model base_url price_in price_out concurrency requests_per_minute tokens_per_minute "
        "timeout retries unusable backoff wait language min_words max_words distinct "
        "contradictions compare_with agreement explain_with unsupported question"
    ),
    "evaluate": (
        f"{MODEL} judge.prompt judge.repeats judge.form judge.units ask.preset ask.temperature "
        "ask.max_tokens"
    ),
    "compare": "",
    "calibrate": "",
    "completion": "",
    "report": "",
    "annotate": "workers clip_timeout clip_memory",
    "serve": MODEL,
    "convert": "",
    "world": "seed seconds fps size mute blank",
    "push": "",
    "doctor": "",
    "bench": (
        "batch_size frames height width seconds text_tokens new_tokens dtype remat slab attention"
    ),
}


def sections(cls: type, prefix: str = "") -> dict[str, type]:
    """{dotted name: dataclass} of all sections of a dataclass, inner ones included."""
    found = {}
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found[f"{prefix}{name}"] = hint
            found |= sections(hint, f"{prefix}{name}.")
    return found


def test_a_name_is_one_section_in_all_jobs():
    """Or, of a job that takes a part of it, its base class."""
    known: dict[str, type] = {}
    for job in cli.JOBS:
        for cls in cli.load_job(job).SETTINGS.classes:
            for name, section in sections(cls).items():
                last = name.rpartition(".")[2]
                other = known.setdefault(last, section)
                assert issubclass(other, section) or issubclass(section, other), f"{job}: {name}"
                known[last] = section if issubclass(section, other) else other
    assert {"clip", "sampling", "mesh", "compute", "data", "optimizer", "loop"} < known.keys()


def test_no_job_has_a_field_of_a_section_of_its_own():
    for job in cli.JOBS:
        for cls in cli.load_job(job).SETTINGS.classes:
            hints = typing.get_type_hints(cls)
            own = {name for name, hint in hints.items() if not dataclasses.is_dataclass(hint)}
            for name, section in sections(cls).items():
                if name in ("clip", "sampling", "mesh", "compute", "engine", "storage"):
                    both = own & {field.name for field in dataclasses.fields(section)}
                    assert not both, f"{job}: {both} stand in {name}, too"


@pytest.mark.parametrize("job", list(cli.JOBS))
def test_short_names_stay(job):
    schema = cli.load_job(job).SETTINGS
    flags, settings = schema.flags(), schema.settings()
    assert schema.short.keys() <= flags.keys()
    for name in SHORT[job].split():
        assert name in flags, f"{job}: --{name}"
        assert name not in settings
    for name in schema.moved:
        assert name not in flags


def test_plan_takes_the_job_of_its_config():
    schema = cli.load_job("plan").SETTINGS
    words = ["--topology", "v5e:4x4", "--config", "sft_3b"]
    config, _ = schema.parse([*words, "--max_new_tokens", "64"])
    assert (type(config).__name__, config.sampling.max_new_tokens) == ("SftPlanConfig", 64)
    with pytest.raises(UserError, match="--beta: unknown setting"):
        schema.parse([*words, "--beta", "0"])
    words[-1] = "grpo_3b"
    config, _ = schema.parse([*words, "--max_new_tokens", "64", "--beta", "0"])
    assert (config.rollout.sampling.max_new_tokens, config.grpo.beta) == (64, 0)


def test_settings_of_a_model_need_the_model():
    schema = cli.load_job("evaluate").SETTINGS
    for words, section in (
        (["--fps", "1"], "clip"),
        (["--temperature", "1"], "sampling"),
        (["--batch_size", "2"], "engine"),
        (["--dtype", "bfloat16"], "compute"),
    ):
        with pytest.raises(UserError, match=f"settings of {section} need ask.checkpoint"):
            schema.parse(["--output", "o.json", *words])


@pytest.mark.parametrize("sizes", [(2, 1, 1), (1, 1, 3), (0, 1, 1), (-1, 2, 1)])
def test_one_device_is_no_excuse_for_a_mesh(sizes, monkeypatch):
    monkeypatch.setattr(caption.jax, "local_devices", lambda: jax.devices()[:1])
    with pytest.raises(UserError, match=r"^mesh data="):
        caption.used_mesh(MeshConfig(*sizes))


def test_one_device_needs_no_mesh(monkeypatch):
    assert caption.used_mesh(MeshConfig(1, 1, 1)) is None
    assert caption.used_mesh(MeshConfig(2, 1, 3)).size == 6
    assert caption.used_mesh(MeshConfig(-1, 1, 1)).size == len(jax.devices())
    monkeypatch.setattr(caption.jax, "local_devices", lambda: jax.devices()[:1])
    assert caption.used_mesh(MeshConfig(-1, 1, 1)) is None
