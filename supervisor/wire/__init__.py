"""The protocol between the command line and the daemon, over a unix socket."""
