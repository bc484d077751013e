"""From a command line to a typed request, without side effects."""
