"""People annotate clips in three stages, in a web page; a benchmark and training data come out.

    answers.py     what annotators said, as values        tables.py, store.py  the database
    fields.py      the fields as forms show them          media.py, preparing.py  sound, picture
    agreement.py, questions.py, exports.py, imports.py, tasks.py   functions of answers
    app.py, templates/, static/   the web application

Imports web, evals, judge, data, media and what is below them.
"""
