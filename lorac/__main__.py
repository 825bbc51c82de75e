"""`python -m lorac`."""

from lorac.cli import main

main()
