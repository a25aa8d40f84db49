"""From a Messages request to the token ids of a prompt, in named segments."""
