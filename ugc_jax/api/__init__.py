"""The jobs as functions of Python: what `ugc_jax.sft` and the others are.

training.py   sft and grpo -> a Run: metrics as arrays, the model's folder
rows.py       their data: rows in memory or a manifest -> extracted records
scoring.py    evaluate and compare -> scores, intervals, verdicts; imports no jax

Beside cli.py: both take settings, one from words and one from keyword options, and call the jobs.
The captioner is generate/captioner.py. Imports jobs and lower layers; only the package itself
imports it.
"""
