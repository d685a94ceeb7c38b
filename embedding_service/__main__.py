"""`python -m embedding_service`."""

from embedding_service.cli import main

main()
