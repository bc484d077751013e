"""The published ports of a session: listening on this host, leading into its guest."""
