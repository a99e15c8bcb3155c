"""Golden cases: outputs of the official implementations, and the runner that compares with them."""
