"""Simulated guests: SSH servers in this process that run local programs. They isolate nothing."""
