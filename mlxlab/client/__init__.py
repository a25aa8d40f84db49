"""The client's side of an endpoint: find a running one, start Claude Code on it."""
