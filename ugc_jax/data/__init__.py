"""Frames and sound -> Example -> records -> Batch. Numpy on the host, no jax.

    features.py    pixels -> patches, sound -> log-mel      prompt.py     the chat template
    positions.py   tokens and rotary positions              example.py    a file -> Example
    batching.py    Examples -> Batch, in buckets            workers.py    tasks in processes
    manifest.py    a manifest or a folder -> rows           extract.py    rows -> records
    records.py     extracted folders, written and read      planning.py   which rows, in which step
    pipeline.py    records -> batches by the plan (Grain)

Imports media, models (the config) and lower layers. Workers and `extract` import no jax.
"""
