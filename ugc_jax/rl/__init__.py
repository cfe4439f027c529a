"""GRPO: captions are sampled, scored, and learned from in groups.

options.py     the objective: a formula and a paper for each setting
step.py        a step, from prompts to updates
rollout.py     completions by the policy as it is, on the devices that train it
rewards/       reward functions and the threads that run them
advantages.py  rewards -> advantages and token weights
rows.py        a prompt with all its completions behind it, as the policy step takes it
update.py      the policy step; objective.py has its loss
resampling.py  dynamic sampling; evaluation.py, metrics.py, settings.py

Imports train, judge, generate, data, models and what lies below them.
"""
