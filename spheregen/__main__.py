"""`python -m spheregen`, and `accelerate launch -m spheregen train …`."""

from spheregen.cli import main

main()
