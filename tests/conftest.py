"""Shared fixtures. Eight CPU devices, to test sharding everywhere; rank promotion is an error."""

import contextlib
import gc
import importlib.metadata
import logging
import os
import resource
import tempfile
from pathlib import Path

_flags = " --xla_force_host_platform_device_count=8"
_flags += " --xla_backend_optimization_level=0"  # most of the time is compiling: a third less
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later ones do not know the flag
    _flags += " --xla_cpu_use_fusion_emitters=false"  # compiles a training step in half the time
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + _flags
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# torch beside XLA on two cores: threads that wait for each other take a sixth of its time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tracing makes millions of objects that live; to look through them as often as Python usually does
# takes a quarter of a training test's time.
gc.set_threshold(50_000, 20, 100)
# Many tests compile the same programs, some in processes of their own: once is enough.
_compiled = tempfile.TemporaryDirectory(prefix="ugc_jax-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _compiled.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import pytest  # noqa: E402

# The files that take longest, longest first: begun early, they leave no worker idle at the end.
SLOW_FILES = (
    "rl/test_update.py", "jobs/test_sft.py", "jobs/test_grpo.py", "test_sharding.py",
    "train/test_step.py", "generate/test_engine.py", "qwen2_5_omni/test_reference.py",
    "plan/test_grpo.py", "rl/test_rollout.py", "models/test_lora.py", "data/test_pipeline.py",
    "test_7b.py", "generate/test_slots.py", "test_accelerator_check.py", "rewards/test_workers.py",
    "jobs/test_caption.py", "test_paper.py",
    "annotate/test_browser.py", "jobs/test_annotate.py", "serve/test_server.py",
    "api/test_docstrings.py", "api/test_training.py", "label/test_run.py", "label/test_faults.py",
)  # fmt: skip


# Cases that take long, of kinds whose other cases are in every run.
SLOW_CASES = (
    "jobs/test_sft.py::test_two_processes_equal_one",
    "jobs/test_sft.py::test_a_finished_run_goes_on_with_whole_epochs",
    "jobs/test_grpo.py::test_it_begins_with_the_model_of_a_run",
    "test_7b.py::test_grpo_split_over_meshes", "test_7b.py::test_sft_split_over_meshes",
    *(f"rl/test_update.py::test_sharded_equals_unsharded[({mesh})]"
      for mesh in ("1, 2, 4", "1, 4, 2", "1, 1, 8", "1, 8, 1", "8, 1, 1")),
    "rl/test_update.py::test_media_computed_before_equal_media_computed_within",
    *(f"test_sharding.py::test_sharded_equals_unsharded[{mesh}]"
      for mesh in ("1x1x8", "1x4x2", "1x8x1", "2x1x4", "4x1x2", "8x1x1")),
    *(f"train/test_step.py::test_sharded_equals_unsharded[({mesh})]"
      for mesh in ("1, 1, 8", "1, 8, 1", "1, 4, 2", "8, 1, 1")),
    *(f"train/test_step.py::test_loss_falls[{case}]"
      for case in ("bf16-master", "accumulated", "bf16-mean", "adafactor", "adamw")),
    *(f"test_reference.py::test_{case}[mid"
      for case in ("bfloat16_agrees_on_most_tokens", "mixed_batch_of_unequal_prompts",
                   "left_padded_batch_of_the_reference", "hidden_rows_and_logits",
                   "greedy_tokens")),
    "test_accelerator_check.py::test_attention", "test_accelerator_check.py::test_training",
    "test_accelerator_check.py::test_transformers_beside_it",
    "models/test_int8.py::test_on_a_mesh",
    "plan/test_remat.py::test_what_is_recomputed_takes_no_memory",
    "generate/test_slots.py::test_constrained_rows_beside_others[(2, 2, 2)]",
    "generate/test_slots.py::test_a_mesh_gives_the_same[(1, 8, 1)]",
    "generate/test_benchmark.py::test_int8_beside_the_plain_model",
    "rl/test_rollout.py::test_a_mesh_of_its_own_gives_the_same[(1, 8, 1)]",
    "rl/test_rollout.py::test_logprobs_in_bfloat16_are_near_those_of_training",
    "train/test_samples.py::test_each_prompt_as_alone_and_programs_compiled_once[2]",
    "train/test_export.py::test_a_young_adapter_is_merged_in_float32_and_cast_once[float32-f",
    "api/test_training.py::test_grpo_has_the_figures_of_the_job",
    "api/test_training.py::test_a_script_without_a_guard",
    *(f"api/test_docstrings.py::test_the_example_of_a_docstring[{name}]"
      for name in ("sft", "grpo")),
    "label/test_faults.py::test_killed_at_random_moments",
    "label/test_run.py::test_verification_on_the_world",
    "serve/test_load.py::test_a_tenth_of_the_load",
    *(f"annotate/test_browser.py::test_pages_are_accessible_and_fit[{form}]"
      for form in ("dark-phone", "light-laptop")),
    "annotate/test_browser.py::test_two_browsers_on_one_clip",
    "annotate/test_browser.py::test_a_login_in_another_tab_goes_on_here",
    "api/test_docstrings.py::test_the_examples_of_the_page",
    "jobs/test_annotate.py::test_every_acknowledged_save_is_there[3]",
    "jobs/test_annotate.py::test_a_lock_of_a_moment",
    "test_accelerator_check.py::test_generation",
    "plan/test_job.py::test_a_sweep_of_training",
    "jobs/test_distributed.py::test_the_parts_come_together_as_of_one_process",
    "jobs/test_sft.py::test_adapter",
    "jobs/test_jobs.py::TestBench::test_beside_vllm[mixed]",
    "generate/test_live.py::test_each_gets_what_it_gets_alone[0]",
    "generate/test_asking.py::test_a_clip_is_read_and_encoded_once[False]",
    "generate/test_engine.py::test_samples_of_a_prompt_are_what_copies_of_it_would_give",
    "generate/test_engine.py::test_prompts_that_begin_alike_are_prefilled_as_each_alone[stacked]",
    "generate/test_slots.py::test_what_streams_is_the_beginning_of_the_completion[]",
    "generate/test_slots.py::test_the_order_does_not_matter[0]",
    "generate/test_captioner.py::test_several_devices_give_the_same_captions[3-1]",
    "plan/test_job.py::test_what_is_tried_where_captions_do_not_fit",
    "plan/test_job.py::test_training_on_this_machine",
    "plan/test_job.py::test_what_is_tried_where_training_does_not_fit",
    "plan/test_grpo.py::test_a_plan_that_does_not_fit",
    "plan/test_grpo.py::test_what_sharing_a_prompt_saves",
    "models/test_int8.py::test_captions_do_not_depend_on_the_neighbours",
    "rl/test_step.py::test_two_processes_equal_one",
    "rl/test_rollout.py::test_a_draw_decides_the_samples",
    "rl/test_update.py::test_parts_equal_one_pass",
    "test_sharding.py::test_sharded_equals_unsharded[1x2x4]",
    "train/test_step.py::test_sharded_equals_unsharded[(1, 2, 4)]",
    "train/test_step.py::test_loss_falls[lora]",
    "train/test_export.py::test_a_young_adapter_is_merged_in_float32_and_cast_once[float32-b",
    "api/test_training.py::test_stopped_and_called_again",
    "label/test_faults.py::test_faults_of_every_kind[openai]",
    "label/test_faults.py::test_killed_while_requests_are_open",
    "label/test_run.py::test_requests_a_minute",
    "annotate/test_browser.py::test_other_keys",
    "test_paper.py::test_operations_are_those_of_plan[grpo_3b]",
    "test_7b.py::test_exported_and_loaded_by_transformers",
    "jobs/test_caption.py::test_killed_at_any_moment_it_goes_on",
    "jobs/test_caption.py::test_warm_leaves_nothing_to_compile[records]",
    "api/test_training.py::test_sft_has_the_figures_of_the_job",
    "api/test_docstrings.py::test_the_example_of_a_docstring[caption]",
    "jobs/test_grpo.py::test_killed_it_goes_on_bit_for_bit",
    "jobs/test_annotate.py::test_on_postgres", "jobs/test_annotate.py::test_behind_a_proxy",
    *(f"annotate/test_browser.py::test_{case}"
      for case in ("pages_are_accessible_and_fit[light-phone]", "a_reload_loses_nothing",
                   "adjudication_and_questions", "nothing_comes_from_elsewhere")),
    "train/test_faults.py::test_the_first_process_dies",
    "generate/test_captioner.py::test_thirty_clips_compile_one_program_a_bucket",
    "generate/test_captioner.py::test_an_unguarded_script_runs_once",
    "generate/test_slots.py::test_a_prompt_gets_what_it_gets_alone[4-2-greedy]",
    "generate/test_slots.py::test_a_prompt_gets_what_it_gets_alone[4-2-sampled]",
    "generate/test_slots.py::test_exhausted_memory_with_constrained_rows_loses_nothing",
    "generate/test_slots.py::test_the_order_does_not_matter[1]",
    "generate/test_engine.py::test_seed_decides_the_samples",
    "serve/test_server.py::test_the_smallest_values_are_greedy",
    "serve/test_page.py::test_words_have_the_colours_of_their_evidence",
    *(f"serve/test_page.py::test_it_is_accessible_and_fits[{form}]"
      for form in ("light-phone", "dark-laptop")),
    "rl/test_rollout.py::test_an_adapter_takes_part",
    "rl/test_rollout.py::test_every_way_gives_the_same_completions[plain parts]",
    "rl/test_update.py::test_what_is_rewarded_becomes_likelier",
    "rewards/test_workers.py::test_processes_end_with_the_run[2]",
    "rewards/test_workers.py::test_processes_end_with_the_run[9]",
    "plan/test_grpo.py::test_operations_of_all_runs",
    "plan/test_grpo.py::test_what_lies_on_a_chip_besides",
    "plan/test_fits.py::test_captions_take_another_dtype_or_more_devices_where_one_has_too_little",
    *(f"test_paper.py::test_operations_are_those_of_plan[{config}]"
      for config in ("sft_7b", "sft_3b:lora")),
    *(f"test_paper.py::test_every_job_understands_its_words[{kind}-variant{variant}]"
      for kind in ("kind0", "kind1", "kind2", "kind3") for variant in (1, 2)),
    "label/test_run.py::test_another_version_of_the_model_ends_the_job",
    "label/test_run.py::test_a_second_teacher_may_come_and_go",
    "jobs/test_distributed.py::test_the_last_process_scores",
    *(f"data/test_pipeline.py::test_what_killed_a_worker_is_told[{signal}"
      for signal in ("7-", "11-")),
    "data/test_pipeline.py::test_small_shared_memory_is_one_line",
    "jobs/test_caption.py::test_pieces_and_subtitles",
    *(f"train/test_export.py::test_a_young_adapter_is_merged_in_float32_and_cast_once[{kinds}"
      for kinds in ("bfloat16-b", "orbax-float32", "orbax-bfloat16")),
    "rewards/test_workers.py::test_a_sample_is_lost_and_counted[misbehave_later-",
    "generate/test_captioner.py::test_readers_end_with_the_stream[drop]",
    *(f"test_reference.py::test_{tower}_tower[mid" for tower in ("vision", "audio")),
    "jobs/test_sft.py::test_stopped_and_resumed_equals_uninterrupted",
    "data/test_pipeline.py::test_workers_stay_at_a_signal",
    "train/test_loop.py::test_a_stop_is_heeded_within_an_evaluation",
    "plan/test_sft.py::test_a_recipe_that_names_no_device",
    "label/test_run.py::test_a_dry_run_counts_second_captions_apart",
    "rl/test_rollout.py::test_logprobs_are_those_of_training[0.7]",
    "models/test_attention.py::test_splash_attention_with_the_heads_of_the_3b",
    *(f"models/test_attention.py::test_kernel_under_a_mesh[False-splash-mesh{mesh}]"
      for mesh in (1, 2)),
    "models/test_attention.py::test_attention_to_a_shared_prompt[4]",
    "models/test_attention.py::test_kernel_is_xla_attention_with_its_gradients[False-100-splash]",
    *(f"models/test_decode_kernel.py::test_{case}"
      for case in ("the_kernels_are_the_attention[one-sample]",
                   "the_kernels_are_the_attention[many-heads]",
                   "the_rotary_embedding_and_the_caches_of_new_tokens[one-sample]",
                   "a_step_takes_them_on_a_gpu[attend_and_cache-32-1]")),
    *(f"rl/test_step.py::test_a_stop_is_heeded_inside_a_step_and_an_evaluation[{case}]"
      for case in ("2-result", "6-result", "4-sample", "6-sample", "2-_generate", "6-_generate")),
    "generate/test_slots.py::test_fewer_rows_as_others_end[sampled]",
    *(f"train/test_step.py::test_sharded_equals_unsharded_at_awkward_lengths[{length}]"
      for length in (4, 8, 11)),
    "train/test_step.py::test_loss_and_gradients_equal_torch[batch]",
    "test_docs.py::test_the_hardware_table_of_the_readme_is_that_of_its_command",
    *(f"jobs/test_distributed.py::test_what_a_killed_process_has_done_is_taken_over[{number}]"
      for number in (1, 2)),
    "generate/test_slots.py::test_fewer_rows_as_others_end[greedy]",
    "generate/test_slots.py::test_places_follow_the_prompts[greedy]",
    "generate/test_slots.py::test_samples_move_into_places_that_are_free",
    "api/test_docstrings.py::test_the_example_of_a_docstring[stream_text]",
    "serve/test_page.py::test_it_is_accessible_and_fits[light-laptop]",
    "label/test_run.py::test_a_pass_gets_its_part_alone[openai]",
    "data/test_pipeline.py::test_errors_arrive_as_one_line_and_workers_start_no_backend[1]",
    "data/test_pipeline.py::test_batches_of_prompts_hold_the_answers_back[1]",
    "data/test_pipeline.py::test_a_dead_worker_is_told",
    "models/test_decode_kernel.py::test_the_rotary_embedding_and_the_caches_of_new_tokens[many-h",
    "models/test_attention.py::test_attention_to_a_shared_prompt[7]",
    *(f"test_reference.py::test_hidden_rows_and_logits[tiny-{case}]"
      for case in ("video_odd_frames", "video_tiny", "image", "video_sound_longer")),
)  # fmt: skip


SLOW_SECONDS = 1400  # the time limit of a slow test; of others: pyproject.toml


def pytest_addoption(parser):
    """Add --slow."""
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


@pytest.hookimpl(tryfirst=True)  # so that `--slow -m slow` finds all of them, and no other
def pytest_collection_modifyitems(config, items):
    """Skip tests marked slow without --slow; run the tests of SLOW_FILES first."""
    for item in items:
        if any(case in item.nodeid for case in SLOW_CASES):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("slow"):
            if config.getoption("--slow"):
                item.add_marker(pytest.mark.timeout(SLOW_SECONDS))
            else:
                item.add_marker(pytest.mark.skip(reason="slow; run with --slow"))
    ranks = {name: rank for rank, name in enumerate(SLOW_FILES)}

    def rank(item) -> int:
        path = item.path.as_posix()
        return min((r for name, r in ranks.items() if path.endswith(name)), default=len(ranks))

    items.sort(key=rank)


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def fresh_logging():
    """No job of another test, nor of a fixture for several, has set up logging for this one."""
    logger = logging.getLogger("ugc_jax")

    def reset():
        logger.setLevel(logging.NOTSET)
        logger.handlers[:], logger.propagate = [], True

    reset()
    yield
    reset()


@pytest.fixture
def highest_precision():
    """Matrix products in full float32, where figures are compared."""
    import jax

    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def no_handles():
    """`with no_handles():` no file can be opened in it."""

    @contextlib.contextmanager
    def block():
        limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []
        try:
            with contextlib.suppress(OSError):
                while True:  # the lowest free numbers, so that all above can be refused
                    taken.append(os.open(os.devnull, os.O_RDONLY))
                    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for handle in taken:
                os.close(handle)

    return block


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real tokenizer, clips and benchmark files; without it the test is skipped."""
    if not SHARED.is_dir():
        pytest.skip("no shared data beside the project")
    return SHARED


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint as `ugc-jax init` writes it: random, with its own tokenizer; of fewer layers
    than tiny's, as most of the time is compiling.
    """
    import cases

    from ugc_jax.jobs import init
    from ugc_jax.models.qwen2_5_omni.config import SIZES, tiny

    path = tmp_path_factory.mktemp("checkpoints") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", lambda: cases.fewer_layers(tiny()))
        assert init.main(init.InitConfig(output=str(path)), []) == 0
    return path


@pytest.fixture(scope="session")
def tokenizer(tiny_checkpoint):
    """The ChatTokenizer of the tiny checkpoint."""
    from ugc_jax.hf.tokenizer import load_chat_tokenizer
    from ugc_jax.models.qwen2_5_omni.config import tiny

    return load_chat_tokenizer(tiny_checkpoint, tiny().tokens)


@pytest.fixture(scope="session")
def tiny_captioner(tiny_checkpoint):
    """One Captioner of the tiny checkpoint for all tests, so that each bucket is compiled once."""
    from ugc_jax import Captioner

    return Captioner.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """A folder of short clips of one shape: two with sound, one below, one silent, one broken."""
    from clips import write_clip

    folder = tmp_path_factory.mktemp("clips")
    (folder / "below").mkdir()
    small = dict(seconds=1.2, fps=10, size=(96, 64))
    for seed, name in enumerate(("a.mp4", "b.mp4", "below/c.mp4")):
        write_clip(folder / name, seed=seed, **small)
    write_clip(folder / "silent.mp4", audio=False, **small)
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:1000])
    return folder


@pytest.fixture(scope="module")
def one_device():
    """Jobs that ask for all devices get one: most of the time is compilation."""
    import jax

    from ugc_jax import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **_: mesh)
        yield
