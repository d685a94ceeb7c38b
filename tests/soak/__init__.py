"""Tests that take long, and times and rates: `make soak`."""
