"""Memory and operations of a program on a TPU slice, without the slice: from the TPU compiler.

chips.py   memory and speed of accelerators
flops.py   operations of a program, counted in its jaxpr
memory.py  bytes of a program, from the compiler for a described slice
floors.py  the least time of a program, by what its text (hlo.py) moves
shapes.py  the model and the largest batch to plan for
sft.py     the plan of a train step
grpo.py    the plan of all programs of a GRPO step
generation.py  the plan of captions and of serving

Imports rl, train and what lies below them; train and rl import nothing from here.
"""
