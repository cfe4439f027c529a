"""HTTP for one captioner: OpenAI's chat completions, and what a page to try it needs.

    protocol.py  bodies of requests -> Chat; answers, chunks and errors in OpenAI's form
    addresses.py may a URL be fetched, and fetching it
    media.py     content parts -> files; which local ones may be read
    reading.py   Chat -> Prompt, by worker processes
    answering.py admission, limits, time, cancelling; a request from its body to its last byte
    metrics.py   figures for Prometheus
    page.py      the page to try it; static/ has its files
    app.py       routes and keys; web/server.py runs them

Imports fastapi and uvicorn (extra `serve`), web, generate, data, media, and of report the files of
evidence; not annotate, not label.
"""
