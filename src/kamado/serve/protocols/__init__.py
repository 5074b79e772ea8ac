"""What clients send and expect: one package for each protocol, and what all of them share."""
