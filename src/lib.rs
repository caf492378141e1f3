//! bucketdisk: a fixed-size, sparse disk that lives in a bucket.

pub mod block;
pub mod codec;
pub mod disk;
pub mod error;
pub mod frontend;
pub mod object;
pub mod store;
