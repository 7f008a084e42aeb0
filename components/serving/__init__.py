"""What answers over a network: today the world model behind Triton."""
