"""A package `vllm` for tests: what vllm_peer.py calls, with an arithmetic for a model.

The next token is the sum of all before, modulo 1000. It also logs to standard output, as vLLM does.
"""

SOURCE = """
import collections, pathlib

__version__ = "0.0.fake"
Output = collections.namedtuple("Output", "token_ids logprobs")
Finished = collections.namedtuple("Finished", "outputs")
Logprob = collections.namedtuple("Logprob", "logprob")


class SamplingParams:
    def __init__(self, temperature, max_tokens, stop_token_ids, logprobs, detokenize):
        assert temperature == 0
        self.max_tokens, self.end, self.logprobs = max_tokens, stop_token_ids, logprobs


class LLM:
    def __init__(self, checkpoint, **options):
        assert (pathlib.Path(checkpoint) / "model.safetensors").exists()
        assert (options["dtype"], options["enable_prefix_caching"]) == ("float32", False)
        self.most, self.media = options["max_model_len"], options["limit_mm_per_prompt"]
        self.llm_engine, self.fresh = self, 0
        print("loading")

    def reset_mm_cache(self):
        self.fresh += 1

    def reset_encoder_cache(self):
        self.fresh += 1

    def enqueue(self, prompts, options, use_tqdm):
        assert self.fresh == 2
        self.waiting, self.fresh = list(zip(prompts, options, strict=True)), 0

    def wait_for_completion(self, use_tqdm):
        return [Finished([self.complete(*one)]) for one in self.waiting]

    def complete(self, prompt, options):
        media = prompt.get("multi_modal_data", {})
        assert all(self.media[kind] for kind in media)
        if media:
            assert prompt["mm_processor_kwargs"]["use_audio_in_video"]
            assert (media["video"].ndim, media["audio"][1]) == (4, 16_000)
        tokens, logprobs = list(prompt["prompt_token_ids"]), []
        for _ in range(options.max_tokens):
            tokens.append(sum(tokens) % 1000)
            logprobs.append({tokens[-1]: Logprob(-1.5)})
        assert len(tokens) <= self.most
        new = tokens[len(prompt["prompt_token_ids"]):]
        return Output(new, logprobs if options.logprobs is not None else None)
"""
