"""Why a prompt missed: a cause for every token that was computed."""
