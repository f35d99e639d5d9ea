"""The settings of a run, and the classes that their names stand for."""
