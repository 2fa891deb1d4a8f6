"""The commands of `megainfer`, each in a file of its own; `megainfer.cli` puts them together."""
