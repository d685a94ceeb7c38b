"""Large amounts of texts: read from files, embedded, and written to files.

The only place that imports pyarrow, and that only inside functions: a gateway does without it.
"""
