"""`python -m budget_trainer.migrate`."""

import sys

from budget_trainer.migrate import main

if __name__ == "__main__":
    sys.exit(main())
