//! What stands between a user and the bytes on real systems: sessions, proxies, access points, sources of credentials.
//!
//! Whatever the environment decides is tried on the command in a process of its own, because variables are
//! process-wide.

mod express;
