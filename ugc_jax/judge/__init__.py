"""The client of an LLM judge, for evaluation (evals/), rewards (rl/rewards/) and labels.

client.py     Judge: asks a server that speaks OpenAI's chat completions; retries, waits out
              outages, limits rate and concurrency, counts tokens and cost
answers.py    the answers on record, in memory and in a file, so that no question is asked twice
messages.py   how a judge is asked, and how its text is read: fences, JSON, faults in words

What is asked, and what an answer is worth, is up to the callers. Imports errors and files only: no
jax, and openai only when a judge is created.
"""
