//! The cache in one process, and processes that are killed at every failpoint.
