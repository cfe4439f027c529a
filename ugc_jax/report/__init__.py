"""The HTML page of results: one file that loads nothing and needs no network.

page.py                 results -> page, by the templates in templates/
tables.py notes.py      its numbers and its words; tables.Display: how a task is shown
plots.py pictures.py    inline SVG; frames and sound of clips as data URIs
published.py            the published scores, and what they compare with

Imports errors, media, data (log-mel) and evals. jinja2 and matplotlib are imported when a page is
made.
"""
