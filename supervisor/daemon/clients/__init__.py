"""What a client's command is given, and how it answers."""
