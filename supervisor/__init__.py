"""The session supervisor of claude-vm: its core, daemon, protocol, SSH side and command line."""
