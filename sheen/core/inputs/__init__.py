"""The forms of input, one module each; `sheen.core.manifest` is how they are read."""
