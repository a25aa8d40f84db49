"""Which eviction policy helps on a trace."""
