"""What is made ahead of need: `supply` is the way in, and nothing outside uses the other modules."""
