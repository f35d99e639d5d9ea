"""The declarations of all settings, by concern."""
