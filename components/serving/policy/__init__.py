"""The policy server: what a policy would do, asked over a network. `server.serve` runs it, `schema` is its language."""
