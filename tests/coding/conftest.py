from places import place  # noqa: F401
