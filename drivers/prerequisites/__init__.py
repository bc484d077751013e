"""What a host must have for each driver, and the commands that bring it: for `claude-vm doctor` and hints."""
