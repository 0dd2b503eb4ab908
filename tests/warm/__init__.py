"""Processes that begin with torch and transformers imported, for the tests that start many of them.

`client.python()` gives the path of a program that takes the place of the interpreter. `PROGRAM -m MODULE …`
does what `python -m MODULE …` does, with the same arguments, folder, environment, standard streams, signals
and exit code, but is forked from a server instead of importing everything anew. What it cannot do it leaves
to the real interpreter. A process that it starts finds the program in `sys.executable`, so that workers and
torchrun's ranks come the same way.
"""
