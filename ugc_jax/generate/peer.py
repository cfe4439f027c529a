"""vLLM beside us in `bench`: a process of its own Python environment.

    checkpoint -> a full one -> Peer: vllm_peer.py, which gets prompts by a file, answers in JSON

The protocol is described in vllm_peer.py, which imports nothing of ugc_jax.
"""

import contextlib
import itertools
import json
import logging
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ugc_jax.errors import UserError
from ugc_jax.files import write_json
from ugc_jax.generate import vllm_peer
from ugc_jax.generate.benchmark import Noise, Run, padded
from ugc_jax.hf.checkpoint import load_params
from ugc_jax.hf.export import save_thinker
from ugc_jax.models.qwen2_5_omni.config import OmniConfig

logger = logging.getLogger(__name__)

REMEDY = "give the Python of an environment in which vLLM runs"
SLACK = 16  # positions beyond the longest prompt and its new tokens


class Answer(NamedTuple):
    """One run of a peer, which takes its own time.

    seconds: of encoders, prefill and decoding. tokens: of each prompt, i32[n]. first_logprobs:
    f32[prompts], of each prompt's first token, or None if not asked for.
    """

    seconds: float
    tokens: list[np.ndarray]
    first_logprobs: np.ndarray | None = None


class Peer:
    """The process; a context manager, which waits for the model and ends the process.

    Raises UserError, in all methods, if it cannot be started or does not answer as it should.
    """

    def __init__(
        self,
        python: str | Path,
        checkpoint: Path,
        dtype: str,
        config: OmniConfig,
        prompts: Sequence[Noise],
        positions: int,
        folder: Path,
    ):
        """Write the files and start the process.

        python: of vLLM's environment. positions: most of a prompt with its new tokens. folder: of
        the files for it, which may be large.
        """
        self.python, self.log = python, folder / "vllm.log"
        params = load_params(checkpoint, config, dtype)
        save_thinker(params, config, folder / "full", checkpoint, full=True)
        write_prompts(folder / "prompts.npz", prompts, config)
        request = {
            "checkpoint": str(folder / "full"),
            "dtype": dtype,
            "max_model_len": positions + SLACK,
            "end": config.tokens.eos_token_id,
            "prompts": str(folder / "prompts.npz"),
        }
        write_json(folder / "request.json", request)
        words = [python, vllm_peer.__file__, folder / "request.json"]
        try:
            with self.log.open("wb") as log:
                self._process = subprocess.Popen(
                    list(map(str, words)),
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, encoding="utf-8",
                )  # fmt: skip
        except OSError as error:
            raise UserError(f"vllm_python: {python}: {error.strerror}; {REMEDY}") from None

    def __enter__(self) -> "Peer":
        """Wait until the model is loaded."""
        try:
            logger.info("vLLM %s has loaded the model", self._read("version")["version"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        self._process.terminate()
        self._process.communicate()

    def run(self, limits: Sequence[int], logprobs: bool = False) -> Answer:
        """Complete all prompts greedily, at most limits[i] new tokens of prompt i."""
        order = {"limits": list(map(int, limits)), "logprobs": logprobs}
        with contextlib.suppress(BrokenPipeError):  # `_read` says why
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        answer = self._read("seconds", "tokens", "first_logprobs")
        if len(answer["tokens"]) != len(limits):
            raise UserError(
                f"vllm_python: {self.python}: answered {len(answer['tokens'])} of {len(limits)} "
                f"prompts; {REMEDY}"
            )
        first = answer["first_logprobs"]
        return Answer(
            float(answer["seconds"]),
            [np.array(tokens, np.int32) for tokens in answer["tokens"]],
            None if first is None else np.array(first, np.float32),
        )

    def _read(self, *fields: str) -> dict:
        line = self._process.stdout.readline()
        with contextlib.suppress(ValueError):
            answer = json.loads(line)
            if isinstance(answer, dict) and all(name in answer for name in fields):
                return answer
        if line:
            reason = f"answered {line.strip()[:200]!r}, not {', '.join(fields)} in JSON"
        else:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            reason = f"ended: {lines[-1] if lines else 'without a message'}"
            logger.debug("%s", "\n".join(lines))
        raise UserError(f"vllm_python: {self.python}: {reason}; {REMEDY}")


def by_peer(peer: Peer, config: OmniConfig, prompts: int, new_tokens: int) -> Callable[[], Run]:
    """Return a side of `benchmark.measure`; its prefill is the generation of one token.

    The first run, which is not timed, also asks for log-probs.
    """
    runs = itertools.count()

    def run() -> Run:
        first = peer.run([1] * prompts, logprobs=next(runs) == 0)
        whole = peer.run([new_tokens] * prompts)
        tokens = padded(whole.tokens, new_tokens, config)
        return Run(first.seconds, whole.seconds - first.seconds, tokens, first.first_logprobs)

    return run


def write_prompts(path: Path, prompts: Sequence[Noise], config: OmniConfig):
    """Write the prompts as vllm_peer.py reads them: a placeholder for a clip."""
    ids, arrays = config.tokens, {}
    for number, prompt in enumerate(prompts):
        medium: list[int] = []
        if prompt.frames is not None:
            medium = [ids.vision_start_token_id, ids.video_token_id, ids.vision_end_token_id]
            arrays[f"frames_{number}"] = prompt.frames
            arrays[f"sound_{number}"] = prompt.sound
        tokens = [*prompt.before, *medium, *prompt.after]
        arrays[f"tokens_{number}"] = np.array(tokens, np.int32)
    np.savez(path, **arrays)
