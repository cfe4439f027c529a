"""The jobs of the command line, one file each: settings, and the wiring of what does the work.

A job's module has a docstring (its --help), `CONFIG` (the dataclass of its settings) and
`main(config, words)`, which returns the exit status. cli.py imports a job when it is chosen.
Nothing but cli.py imports a job. Only jobs pass what the toy world offers (its reward, its task,
the corpus of its tokenizer) to the rest of the package.
"""
