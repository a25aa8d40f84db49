"""Claude Code's own history in ~/.claude/projects."""
