"""`python -m vitskip` is `vitskip`."""

from .cli import main

main()
