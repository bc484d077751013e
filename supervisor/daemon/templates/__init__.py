"""A project's template: the current one, and its builds."""
