"""Scenarios without a VM: what the supervisor itself costs, on simulated guests and a loopback sshd."""
