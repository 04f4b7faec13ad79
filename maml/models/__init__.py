"""What is meta-learned: the official networks, and one's own."""
