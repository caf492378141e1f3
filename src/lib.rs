//! bucketdisk: a fixed-size, sparse disk that lives in a bucket.

pub mod block;
pub mod error;
pub mod object;
