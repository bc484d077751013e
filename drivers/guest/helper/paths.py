"""Where the helper's files lie in the guest."""

RUN = "/run/claude-vm"
HOLDER = f"{RUN}/holder"
IDENTIFIED = f"{RUN}/identified"
SEALED = f"{RUN}/sealed"
SSHD = f"{RUN}/sshd.pid"
SSHD_EMPTY = "/run/sshd"  # sshd locks what talks to strangers into it
