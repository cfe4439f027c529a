"""Rewards of sampled captions.

runner.py    Rewards: several functions at once on a thread of its own, with retries and a cache;
             BatchRewards: the rewards of one batch, shared among the processes
workers.py   a user's functions, called in processes that can be killed; process.py: such a process
local.py     rewards that are computed in place (dialogue.py: who says what)
judged.py    rewards that an LLM judge gives

A user's functions come from a file (`rewards.file`), the world's from jobs/grpo.py. Imports errors,
settings, words, processes, judge, data, generate and rl/rows.py; no evals.
"""
