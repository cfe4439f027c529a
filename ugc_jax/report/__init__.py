"""The HTML page of results: one file that loads nothing and needs no network.

page.py                 results -> page, by the templates in templates/
tables.py notes.py      its tables and its sentences; tables.Display: how a task is displayed
plots.py pictures.py    inline SVG; frames and sound of clips as data URIs
published.py            the published scores and their protocols

Imports errors, media, data (log-mel) and evals. jinja2 and matplotlib are imported when a page is
made.
"""
