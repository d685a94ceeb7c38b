"""A request's story, free of HTTP and of any dialect: prompts, caches, admission, vectors."""
