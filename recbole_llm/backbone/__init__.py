"""Language models that read item text: presets, where they come from, and loading them."""
