"""One file for each API that is spoken: its fields, its answers, its errors."""
