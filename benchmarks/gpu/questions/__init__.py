"""Questions that the section of the same name asks; each answers with numbers."""
