"""Put a soft prompt in front of a backbone: make, run, save and load it."""
