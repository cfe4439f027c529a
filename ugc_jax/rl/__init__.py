"""GRPO: trains on groups of sampled captions by their rewards.

options.py     the objective's options: a formula and a paper for each setting
step.py        a step, from prompts to updates
rollout.py     completions by the current policy, on the devices that train it
rewards/       reward functions, and the processes that run a user's
advantages.py  rewards -> advantages and token weights
rows.py        the policy step's rows: a prompt followed by all its completions
objective.py   the policy step: rows -> log-probs -> loss -> gradient -> update
resampling.py  dynamic sampling; evaluation.py, metrics.py, settings.py

Imports train, judge, generate, data, models and what lies below them.
"""
