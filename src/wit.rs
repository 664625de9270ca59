//! WIT-SVIDs: the documents, from bytes to checked values and back. No I/O.
