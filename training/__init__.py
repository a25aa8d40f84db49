"""How the bundled model was made: tokenizer, tasks, training, evaluation."""
