//! What the test binaries share. A binary that uses [`s3_server`] also has, at its root, a test that lets the server's process in:
//!
//! ```ignore
//! #[test]
//! fn s3_server_process() {
//!     support::s3_server::serve_if_asked();
//! }
//! ```

// each test binary uses its own part of this
#![allow(dead_code)]

pub mod block_store_contract;
pub mod cache;
pub mod canned_http;
pub mod encrypted;
pub mod fault;
pub mod fsx;
pub mod in_place;
pub mod kinds;
pub mod local_disk;
pub mod log;
pub mod memory;
pub mod object_contract;
pub mod pause;
pub mod real;
pub mod s3_server;
pub mod s3_service;
pub mod volume;
