"""Bulk work: jobs that outlive a request, and their state."""
