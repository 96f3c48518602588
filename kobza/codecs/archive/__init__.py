"""Folders and several files in one .kbz: a manifest of entries in front of the files' bytes.

The container's raw bytes are then: length of the manifest as a varint, the manifest, the bytes of the files in the
manifest's order. The manifest: number of entries varint, per entry: kind u8 (0 folder, 1 file, 2 link), path (varint
length, UTF-8), mode varint (permission bits), modified varint (seconds since 1970), then for a file its size varint and
SHA-256, for a link its target (varint length, UTF-8).
"""
