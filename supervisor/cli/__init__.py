"""The program `claude-vm`: a thin client that starts fast."""
