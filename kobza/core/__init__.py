"""The ground floor: errors, tables, results, pictures, options, techniques, files, texts. Imports nothing of ours above it."""
