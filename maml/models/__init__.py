"""What is meta-learned: the official networks, and your own."""
