"""Problems with answers that can be checked, out of files."""
