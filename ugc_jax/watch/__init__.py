"""The processes of a distributed run watch each other, so that none waits for ever for a lost one.

join.py         connects the processes (jax.distributed) and starts the watching
coordinator.py  a process beside process 0: jax's coordination service, and the hub
hub.py          the hub: collects the processes' reports, and decides that one is lost
member.py       a thread in every process: reports its progress, ends the process on a verdict

jax itself notices a dead process after 100 s, by aborting in C++; a process that hangs it never
notices. May import errors, processes and jax.
"""
