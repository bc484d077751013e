"""The process around a supervisor: the daemon's own, or a client's."""
