"""The jobs of the command line, one file each: settings, and the calls into the package.

A job's module has a docstring (its --help), `SETTINGS` (a `settings.Schema`) and
`main(config, words)`, which returns the exit status. cli.py imports the job that the command line
names, api/ those that are functions of Python, and nothing else imports any. Only jobs pass parts
of the toy world (its reward, its task, the corpus of its tokenizer) to the rest of the package.
"""
