"""SSH to guests. The only package that imports asyncssh, apart from the simulated guests."""
