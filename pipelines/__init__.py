"""The story: which word follows which, where it runs, and how to start it."""
