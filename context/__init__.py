"""What a session is given: project, configuration, mounts, and what Claude finds in its home."""
