"""How many agents a machine carries."""
