"""The client of an LLM judge, for evaluation (evals/), rewards (rl/rewards/) and labels.

client.py     Judge: asks a server that speaks OpenAI's chat completions; retries, waits out
              outages, limits rate and concurrency, counts tokens and cost
answers.py    the cache of answers, in memory and in a file, so that no question is asked twice
messages.py   the text of questions and answers: fences, JSON, descriptions of errors

The callers write the questions and score the answers. Imports errors and files only: no
jax, and openai only when a judge is created.
"""
