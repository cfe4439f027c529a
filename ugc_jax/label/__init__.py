"""A teacher captions clips: three passes, verification, and rows to train from.

settings.py    teacher, requests, verification: the sections of the job
material.py    what a clip is for a teacher: its sound, its picture, both
prompts.py     the texts of the questions (prompts/*.txt, replaceable) and their hash
gemini.py, openai_server.py, local.py    the teachers; teacher.py: what they have in common;
               gathering.py: batches for our own engine
asking.py      limits, retries, cost; journal.py: every answer on disk before it is counted
statements.py  what two texts say against each other, by rules; verify.py: all checks
support.py     which words of a caption a checkpoint of ours finds in sound and picture
run.py         the passes of each clip and the files of results; estimate.py: before the first call
select.py      which rows to train on; embeddings.py: what it compares clips by; page.py: and why

May import report/, generate/, judge/ and below, evals/ and rl/rewards/local; never annotate/,
serve/ or toy/.
"""
