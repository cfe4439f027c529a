"""Evaluation: scores of predictions, task by task, and comparison of results.

tasks.py          the tasks of UGC-VideoCap as data and functions: how each is read and scored
predictions.py    a model's predictions, from files of any usual form; scores.py: a judge's ratings
texts.py options.py   what is no answer at all; the option that an answer chooses
metrics.py ocr.py scores of answers with options and of read text; intervals.py: their confidence
judged.py prompts.py   captions scored by an LLM judge; structured.py: by units of the reference
benchmarks/       other benchmarks by caption: events, questions
evaluate.py summary.py results.py   clips -> tasks -> the result file
compare.py calibrate.py             two results; several judges of the same captions

Imports errors, files, media (names of clips) and judge; no jax: a job that only scores starts at
once. generate/asking.py asks a model, report/ makes the page.
"""
