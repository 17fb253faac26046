"""`python -m budget_trainer.sweep`."""

import sys

from budget_trainer.sweep import main

if __name__ == "__main__":
    sys.exit(main())
