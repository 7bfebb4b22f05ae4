"""From records to batches: conversations, templates, examples, abilities and mixtures."""
