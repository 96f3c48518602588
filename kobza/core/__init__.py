"""The ground floor: errors, tables, results, pictures, options, techniques, files, texts."""
