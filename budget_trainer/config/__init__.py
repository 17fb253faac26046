"""Every flag of train_mlm.py, the parser of recipes and command lines, and the checked recipe that comes of them."""
