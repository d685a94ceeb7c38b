"""The measurements behind docs/performance.md; docs/notebook/method.md says how they are made."""
