"""Generate with vLLM for `ugc-jax bench`; runs in vLLM's own environment, without ugc_jax.

    python vllm_peer.py REQUEST.json

REQUEST.json: {"checkpoint": a full checkpoint, "dtype", "max_model_len", "end": the id of the
end-of-text token, "prompts": an .npz file}. The .npz file has of prompt i `tokens_i`, in which one
placeholder stands for a medium, and, where it has them, `frames_i` u8[n, h, w, 3] and `sound_i`
f32[samples] of 16 kHz.

Standard output has a line of JSON when the model is loaded, {"version"}, and one for each line of
standard input, {"limits": most new tokens of each prompt, "logprobs": whether to return them}:
{"seconds", "tokens", "first_logprobs": of each prompt's first token, or null}. All else goes to
standard error. `seconds` is the time of encoders, prefill and decoding: frames and sound become the
model's input before, and nothing is cached from one run to the next.
"""

import json
import os
import sys
import time

# Of vLLM on a CPU: GiB for its cache, no pinning of threads; and one process, in which generation
# starts when all prompts are there.
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "4",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "HF_HUB_OFFLINE": "1",
}
SAMPLE_RATE = 16_000
AREAS = {"min_pixels": 28 * 28, "max_pixels": 16384 * 28 * 28}  # of frames: none is resized


def main(path: str) -> int:
    """Load the model, then answer each line of standard input."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM logs to standard output
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})

    import vllm

    def answer(content: dict):
        print(json.dumps(content), file=answers, flush=True)

    with open(path, encoding="utf-8") as file:
        request = json.load(file)
    prompts = read_prompts(request["prompts"])
    most = {
        kind: max(int(kind in prompt.get("multi_modal_data", {})) for prompt in prompts)
        for kind in ("image", "video", "audio")
    }
    llm = vllm.LLM(
        request["checkpoint"],
        dtype=request["dtype"],
        max_model_len=request["max_model_len"],
        limit_mm_per_prompt=most,
        enforce_eager=True,
        enable_prefix_caching=False,
    )
    answer({"version": vllm.__version__})
    for line in sys.stdin:
        order = json.loads(line)
        options = [
            vllm.SamplingParams(
                temperature=0.0,
                max_tokens=limit,
                stop_token_ids=[request["end"]],
                logprobs=0 if order["logprobs"] else None,
                detokenize=False,
            )
            for limit in order["limits"]
        ]
        answer(generate(llm, prompts, options))
    return 0


def read_prompts(path: str) -> list[dict]:
    """Return vLLM's prompts of an .npz file."""
    import numpy as np

    prompts = []
    with np.load(path) as arrays:
        while (name := f"tokens_{len(prompts)}") in arrays:
            number = len(prompts)
            media = {
                kind: arrays[f"{key}_{number}"]
                for kind, key in (("video", "frames"), ("audio", "sound"))
                if f"{key}_{number}" in arrays
            }
            prompt = {"prompt_token_ids": arrays[name].tolist()}
            if media:
                both = {"video", "audio"} <= media.keys()
                if "audio" in media:
                    media["audio"] = media["audio"], SAMPLE_RATE
                prompt["multi_modal_data"] = media
                prompt["mm_processor_kwargs"] = AREAS | {"use_audio_in_video": both}
            prompts.append(prompt)
    return prompts


def generate(llm, prompts: list[dict], options: list) -> dict:
    """Generate once; see the module's text."""
    llm.reset_mm_cache()
    llm.llm_engine.reset_encoder_cache()
    llm.enqueue(prompts, options, use_tqdm=False)
    start = time.perf_counter()
    outputs = llm.wait_for_completion(use_tqdm=False)
    seconds = time.perf_counter() - start
    outputs = [one.outputs[0] for one in outputs]  # in the order of the prompts
    first = None
    if options[0].logprobs is not None:
        first = [one.logprobs[0][one.token_ids[0]].logprob for one in outputs]
    tokens = [list(one.token_ids) for one in outputs]
    return {"seconds": seconds, "tokens": tokens, "first_logprobs": first}


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
