"""What a server claims to reuse, against what could have been reused."""
