"""`python -m tfloss` is the command `tfloss`."""

import sys

from tfloss.cli import main

if __name__ == "__main__":
    sys.exit(main())
