"""What a person types and reads: the `wovr` command."""
