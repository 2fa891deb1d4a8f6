"""Plans as others read them: a JSON document, a picture, the options that start one."""
