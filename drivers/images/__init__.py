"""Guest images built on this host, and what goes into them."""
