"""People annotate clips in three stages, in a web page; a benchmark and training data come out.

answers: what annotators said, as values. agreement, questions, exports, imports: pure functions of
them. store: the project's database. app, pages: the web application.

Imports: web, report, evals, judge, data, media and what is below them.
"""
