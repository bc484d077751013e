"""Where a command runs: its driver, and the kind of VM that it would get."""
