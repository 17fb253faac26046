"""The report of a run, its picture, the model card, the Hub.

Works on dictionaries and files, so that a publisher beside a training needs no torch.
"""
