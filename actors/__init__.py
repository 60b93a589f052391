"""The thin Ray shell: each actor builds an engine object and delegates."""
