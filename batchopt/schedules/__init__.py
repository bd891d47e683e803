"""What a run does with its batch size and learning rate, and how other frameworks are told."""
