"""Model base classes, registries and checkpoint loading of the stand-in."""
