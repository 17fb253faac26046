"""What is told of a finished run: the account, its picture, the model card, the Hub. Needs no torch."""
