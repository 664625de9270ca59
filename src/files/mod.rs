//! SVIDs as files, for programs that read files.
