"""The model against transformers on torch (float32): towers, positions, logits, tokens."""

import dataclasses

import cases
import jax
import numpy as np
import pytest

from ugc_jax.data.prompt import AUDIO, VISION
from ugc_jax.generate.engine import Engine
from ugc_jax.generate.settings import SamplingConfig
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.config import load_config
from ugc_jax.models.compute import Compute
from ugc_jax.models.qwen2_5_omni import config as config_lib
from ugc_jax.models.qwen2_5_omni import thinker

pytestmark = pytest.mark.usefixtures("highest_precision")

torch = pytest.importorskip("torch")
reference = pytest.importorskip("ugc_jax.hf.reference")

FLOAT32 = Compute()
TOLERANCE = 1e-4  # relative to the largest value, float32 at the highest matmul precision


def relative_error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"relative error {error:.1e}")  # pytest -rP shows it
    return error


@dataclasses.dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded by both."""

    config: config_lib.OmniConfig
    params: dict
    torch_model: object
    engine: Engine

    def jit(self, function, compute=FLOAT32):
        """`function(params, config, compute, *arrays)` of thinker.py, compiled."""
        return jax.jit(lambda *arrays: function(self.params, self.config, compute, *arrays))

    def inputs(self, examples, parts_of):
        seconds = [cases.SECONDS_PER_GRID] * sum(map(cases.videos, parts_of))
        sound = any(map(cases.has_sound_in_video, parts_of))
        return reference.reference_inputs(examples, self.config, seconds, sound)


@pytest.fixture(scope="session", params=["tiny", "mid"])
def pair(request, tmp_path_factory) -> Pair:
    from ugc_jax.jobs.init import InitConfig, main

    folder = tmp_path_factory.mktemp(request.param) / "checkpoint"
    main(InitConfig(output=str(folder), size=request.param), [])
    config = load_config(folder)
    torch_model = reference.load_reference(folder)
    torch_model.set_attn_implementation("eager" if request.param == "tiny" else "sdpa")
    params = load_params(folder, config)
    return Pair(config, params, torch_model, Engine(config, Compute()))


@pytest.fixture(params=cases.CASES)
def parts(request, pair):
    if pair.config == config_lib.mid() and request.param not in (
        "text",
        "video_with_sound",
        "several_media",
    ):
        pytest.skip("the larger model runs the cases that hold the others")
    return cases.CASES[request.param]


def test_hidden_rows_and_logits(pair, parts):
    example = cases.make_example(pair.config, parts)
    batch = cases.one_batch(pair.config, [example])
    inputs = pair.inputs([example], [parts])

    hidden = pair.jit(thinker.hidden_states)(batch)
    ours = thinker.logits(thinker.head(pair.params), hidden[0, : len(example.tokens)])
    with torch.no_grad():
        theirs = pair.torch_model(**inputs).logits[0].numpy()
    assert relative_error(ours, theirs) <= TOLERANCE

    positions, _ = pair.torch_model.get_rope_index(
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        inputs.get("use_audio_in_video", False),
        inputs["feature_attention_mask"].sum(-1) if example.mels else None,
        inputs.get("video_second_per_grid"),
    )
    np.testing.assert_array_equal(example.positions, positions[:, 0].numpy())


def test_vision_tower(pair, parts):
    example = cases.make_example(pair.config, parts)
    if not example.vision:
        pytest.skip("no picture in this case")
    batch = cases.one_batch(pair.config, [example])
    rows = pair.engine.encode(pair.params, batch)["vision"][0]
    takes = example.source == VISION
    patches = np.concatenate(
        [reference.reference_patches(picture, pair.config) for picture in example.vision]
    )
    grids = torch.tensor([picture.grid for picture in example.vision])
    with torch.no_grad():
        theirs = pair.torch_model.model.visual(
            torch.from_numpy(patches), grid_thw=grids
        ).pooler_output.numpy()
    # Tokens stand in the order of the reference's rows, so the splice is under test too.
    assert relative_error(rows[batch.splice[0, : len(takes)][takes]], theirs) <= TOLERANCE


def test_audio_tower(pair, parts):
    example = cases.make_example(pair.config, parts)
    takes = example.source == AUDIO
    if not takes.any():
        pytest.skip("no sound tokens in this case")
    batch = cases.one_batch(pair.config, [example])
    rows = pair.engine.encode(pair.params, batch)["audio"][0]
    first = np.prod(batch.media["vision"].patches.shape[1:4]) // 4
    frames = torch.tensor([len(mel) for mel in example.mels])
    mel = torch.from_numpy(np.concatenate(example.mels).T)
    with torch.no_grad():
        theirs = pair.torch_model.model.audio_tower(mel, feature_lens=frames).pooler_output.numpy()
    assert relative_error(rows[batch.splice[0, : len(takes)][takes] - first], theirs) <= TOLERANCE


def greedy(pair, examples, tokens=64):
    batch = cases.one_batch(pair.config, examples)
    options = SamplingConfig(max_new_tokens=tokens)
    return pair.engine.generate(
        pair.params, batch, options, np.arange(len(examples), dtype=np.uint32)
    )


def reference_greedy(pair, inputs, tokens=64):
    with torch.no_grad():
        out = pair.torch_model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    new = out[:, inputs["input_ids"].shape[1] :].numpy()
    padded = np.full((len(new), tokens), pair.config.tokens.pad_token_id)
    padded[:, : new.shape[1]] = new
    return padded


def test_greedy_tokens(pair, parts):
    example = cases.make_example(pair.config, parts)
    ours = greedy(pair, [example])
    np.testing.assert_array_equal(
        ours.tokens[0], reference_greedy(pair, pair.inputs([example], [parts]))[0]
    )


def test_mixed_batch_of_unequal_prompts(pair):
    """Clips with and without sound in a batch; one by one there, where it is wrong (spec 7.2)."""
    names = ["video", "video_with_sound", "text", "audio", "several_media", "video_sound_shorter"]
    if pair.config == config_lib.mid():
        names = names[:2]
    many = [cases.CASES[name] for name in names] + [[400, *cases.CASES["video_with_sound"]]]
    examples = [cases.make_example(pair.config, parts, seed) for seed, parts in enumerate(many)]
    ours = greedy(pair, examples)
    for row, (example, parts) in enumerate(zip(examples, many, strict=True)):
        theirs = reference_greedy(pair, pair.inputs([example], [parts]))[0]
        np.testing.assert_array_equal(ours.tokens[row], theirs)


def test_left_padded_batch_of_the_reference(pair):
    many = [cases.CASES["video_with_sound"], [40, *cases.CASES["video_sound_longer"]]]
    examples = [cases.make_example(pair.config, parts, seed) for seed, parts in enumerate(many)]
    np.testing.assert_array_equal(
        greedy(pair, examples).tokens, reference_greedy(pair, pair.inputs(examples, many))
    )


def test_bfloat16_agrees_on_most_tokens(pair):
    """Next-token choices of a whole prompt in bfloat16, against the float32 reference (spec 6)."""
    parts = cases.CASES["video_with_sound"] + [200]
    example = cases.make_example(pair.config, parts)
    hidden = pair.jit(thinker.hidden_states, Compute("bfloat16"))(
        cases.one_batch(pair.config, [example])
    )
    ours = thinker.logits(thinker.head(pair.params), hidden[0, : len(example.tokens)]).argmax(-1)
    with torch.no_grad():
        theirs = pair.torch_model(**pair.inputs([example], [parts])).logits[0].numpy().argmax(-1)
    agreement = (np.asarray(ours) == theirs).mean()
    print(f"equal tokens {agreement:.1%}")
    assert agreement >= 0.9
