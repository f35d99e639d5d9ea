"""One HTML page that holds all of a comparison."""
