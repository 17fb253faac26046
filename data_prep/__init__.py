"""From text to a data folder, one stage per file, each run as `python -m data_prep.<stage>`:

docstrings  a small English corpus out of the installed Python packages, for a machine with nothing else
tokenizer   a WordPiece, BPE or Unigram vocabulary from a corpus
blocks      corpus and tokenizer -> fixed-length blocks, split, sharded and described by manifest.json
prepare     all of it by one recipe: clean, filter, de-duplicate, train a tokenizer, cut into blocks; goes on after a kill
hdf5        the original project's shards -> a data folder
inspect     what a data folder holds
merge       several data folders -> one
split       the same rows in another number of shards
"""
