"""Frames and sound -> Example -> records -> Batch. Numpy on the host, no jax.

    prompt.py     messages -> tokens, positions           features.py  pixels -> patches, log-mel
    example.py    a file -> Example                       batching.py  Examples -> Batch, in buckets
    manifest.py   a manifest or a folder -> rows          extract.py   rows -> records
    forms.py      a row in any tool's form -> messages    removal.py   records taken out for good
    tables.py     data sets of Hugging Face -> rows       tars.py      webdataset's files -> rows
    embedded.py   clips within a data set's files
    card.py       the data card beside records            removed.py   the list of what was
    records.py    extracted folders, written and read     planning.py  which rows, in which step
    pipeline.py   records -> batches by the plan (Grain)  reading.py   files -> prompts, read ahead
    workers.py    processes that read and may die         shown.py     what records show a model
    grain_workers.py  Grain's processes, and all that is worked around in them

Imports media, models (the config) and lower layers. Workers and `extract` import no jax.
"""
