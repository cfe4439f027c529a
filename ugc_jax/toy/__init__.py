"""The synthetic world: clips whose captions can be checked word for word, to try every job offline.

synthetic.py   scenes -> H.264 and AAC; world.py: the scenes, their attributes and captions
corpus.py      text from which the tiny checkpoint's tokenizer is trained (`init`)
reward.py      the world's reward (`grpo`); task.py: the world as a task (`evaluate`, `report`)

Only jobs/, launch/ and configs/ import it, and give its parts to the layers below as arguments. It
may import all of these.
"""
