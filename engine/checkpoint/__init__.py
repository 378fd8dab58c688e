"""What survives: the commit protocol (rules), the manifest (bytes) and the state directory (files).

    protocol   which step may follow which, and what recovery decides; no bytes, no files
    manifest   records as framed, checksummed bytes, and back; no files
    store      the state directory: its lock, its terms, its manifest files

Nothing is re-exported: the rules can be read, imported and tested without the files.
"""
