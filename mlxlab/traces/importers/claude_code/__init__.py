"""Claude Code's own history, ~/.claude/projects."""
