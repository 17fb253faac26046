"""From text to a data folder, one stage per file, each run as `python -m data_prep.<stage>`:

docstrings  a small English corpus out of the installed Python packages, for a machine with nothing else
tokenizer   a WordPiece vocabulary from a corpus
blocks      corpus and tokenizer -> fixed-length blocks, split, sharded and described by manifest.json
"""
