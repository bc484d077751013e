"""The programs of ours that run in guests. Each is started by `__main__`, and knows nothing beside itself."""
