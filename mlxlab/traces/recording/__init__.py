"""Recording: a proxy in front of an endpoint, or a script that answers."""
