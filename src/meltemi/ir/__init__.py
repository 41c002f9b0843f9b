"""What one proxy shall do, in our words: frozen, hashable values that carry their origins."""
