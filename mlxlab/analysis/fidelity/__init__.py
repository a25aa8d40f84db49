"""How reuse changes answers: divergence, tasks and tool calls beside a noise floor."""
