"""OpenAI's files and batches, which clients send: jobs that outlive a request, and their state.

Corpora that are embedded by the command `embed` are in `embedding_service/bulk`.
"""
