"""Every flag with all that is known of it, the parser, recipes, help.

Parsing is pure: it starts no process group and writes nothing. What it gives is a frozen Recipe.
"""
