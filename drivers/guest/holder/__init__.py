"""The holder of a claude-vm guest: it owns the terminals and pipes of sessions, so that they outlive SSH.

It runs as the guest's user, started by the guest helper. The supervisor reaches it through its SSH
connection, at a unix socket. A shell is started ahead (*primed*): it reads its profile and then waits at
descriptor 9 for the id of the session that it becomes (the other half is the launcher, ``session``). Which
program then runs, with which words and which environment, lies in files; the holder knows nothing of it.

What a session writes is kept until it is acknowledged, with the offset of its first byte, and its exit
status is kept. So a supervisor that comes back reads on where it stopped. What is kept is bounded: a session
with pipes then waits, so that nothing is lost; on a terminal that nobody has watched for a while the oldest
output goes, so that the program does not stop. The frames I, E, W and K are counted, so that a supervisor
whose connection broke repeats those that did not arrive, and no others.

Frames, both ways: a letter, the length of the rest (4 bytes, big endian), the rest. To the holder:

    P  {"kind": "pty" or "pipes", "term": text}   connect to a primed shell; made when there is none
    T  {"session": id, "out": n, "err": n}        connect to a session, from these offsets (null: all)
    L                                             list the sessions
    N                                             tell what this guest listens at, now and at each change
    S  {"session": id, "size": [4 numbers]}       become this session (rows, columns, width, height)
    I  bytes                                      for its input, at most `INPUT_WINDOW` ahead of C
    E                                             its input ends
    W  4 numbers of 2 bytes                       the terminal's size
    K  name                                       send a signal, without SIG, to its process group
    A  2 numbers of 8 bytes                       so much of stdout and stderr has arrived, in all

From the holder:

    R                    the shell waits for S
    O, F  8 bytes, data  stdout or stderr, from this offset on
    Z  1 or 2            that output has ended
    C  2 numbers of 8    so much of the input was passed on, and so many of I, E, W and K came, in all
    B                    before X: something that the session has started still works, which is told soon
    B  JSON              after X: how many processes these are by then, and the command lines of the first
    X  4 bytes           the exit status (128+n for signal n); output may still come
    L  JSON              the sessions
    N  JSON              TCP ports that are listened at, on all addresses or the loopback
    !  text              refused; the connection ends

One connection is for one shell; a newer one to the same session takes its place.

Standard library only, because it is part of the guest's image; there ``__main__`` in the folder above starts
it. The simulated driver runs the same code.
"""

from .connection import Connections
from .holding import Holder
from .loop import Loop
from .serving import main

__all__ = ["Connections", "Holder", "Loop", "main"]
