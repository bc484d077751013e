"""Where the helper's files lie in the guest."""

RUN = "/run/claude-vm"
HOLDER = f"{RUN}/holder"
IDENTIFIED = f"{RUN}/identified"
SEALED = f"{RUN}/sealed"
SSHD = f"{RUN}/sshd.pid"
