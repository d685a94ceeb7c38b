"""Corpora to vectors by the command `embed`: read from files, embedded, and written to files.

The files and batches that clients of OpenAI's API send are in `embedding_service/batches`. Nothing
else imports pyarrow, and this only inside functions: a gateway does without it.
"""
