"""What a program takes before a slice is rented: memory by the TPU compiler, operations counted.

chips.py   what accelerators can do
flops.py   operations of a program, counted in its jaxpr
memory.py  bytes of a program, by the compiler for a described slice
shapes.py  the model and the largest batch that are planned for
sft.py     the plan of a train step
grpo.py    the plan of all programs of a GRPO step

Imports rl, train and what lies below them; train and rl import nothing from here.
"""
