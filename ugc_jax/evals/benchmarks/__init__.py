"""Benchmarks by caption beside UGC-VideoCap: a caption a video, judged by a text-only LLM.

video_salmonn_2.py daily_omni.py worldsense.py   a benchmark each: its columns, judge and figures
events.py       missed and hallucinated events      questions.py   answers from the caption alone
columns.py      files of rows, whose columns are mapped to fields by name
benchmark.py    what a benchmark is, and how its files become a task; table.py: all of them

The files themselves are not here, and what papers do not tell of their form is not assumed: a user
maps columns (`--map video=COLUMN`). Imports evals, files and errors; no jax.
"""
