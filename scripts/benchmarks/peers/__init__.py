"""The peers: what users would use instead, each a separate program that does exactly the same remote work."""
