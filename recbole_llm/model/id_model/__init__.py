"""A frozen ID model inside another model."""
