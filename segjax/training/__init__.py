"""Training: one loop around one jitted step."""
