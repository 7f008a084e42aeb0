"""What answers over a network: the world model behind Triton, policies, the gateway beside a robot, metrics."""
