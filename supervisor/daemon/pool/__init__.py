"""What the pool may take of this host, and what it takes."""
