//! A scripted S3 server.
