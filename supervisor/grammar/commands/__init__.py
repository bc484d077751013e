"""The sub-commands, one a file: the parameters of each, and the request that it makes of them."""
