"""Views of tables of vectors: a model's two ends, or a file of word vectors.

The verb of the room is `table(model, *, ...) -> Table`; pictures are in the table's `figures`.
"""
