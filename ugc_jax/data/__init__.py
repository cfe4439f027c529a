"""Frames and sound -> Example -> records -> Batch. Numpy on the host, no jax.

    prompt.py     messages -> tokens, positions           features.py  pixels -> patches, log-mel
    example.py    a file -> Example                       batching.py  Examples -> Batch, in buckets
    manifest.py   a manifest or a folder -> rows          extract.py   rows -> records
    records.py    extracted folders, written and read     planning.py  which rows, in which step
    pipeline.py   records -> batches by the plan (Grain)  reading.py   files -> prompts, read ahead
    workers.py    processes that read and may die         shown.py     what records show a model

Imports media, models (the config) and lower layers. Workers and `extract` import no jax.
"""
