//! The store for the benchmarks: an S3 service over a directory, as far away as is asked for.
//!
//! `cargo run --release --example store DIR DELAY_MS [BYTES_PER_SECOND]` makes DIR/bucket, prints its port, its access key and its
//! secret, and serves until its standard input ends. A request is answered DELAY_MS late; bodies take BYTES_PER_SECOND at most.

#[path = "s3_service.rs"]
mod s3_service;

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use s3_service::{ACCESS_KEY, Pace, SECRET_KEY, serve};

const USAGE: &str = "usage: store DIR DELAY_MS [BYTES_PER_SECOND]";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let data = PathBuf::from(arguments.next().expect(USAGE));
    let delay = arguments
        .next()
        .and_then(|ms| ms.parse().ok())
        .expect(USAGE);
    let rate = arguments.next().map(|rate| rate.parse().expect(USAGE));
    let pace = Pace {
        delay: Duration::from_millis(delay),
        rate,
    };
    std::fs::create_dir_all(data.join("bucket")).expect("the bucket");
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    runtime.block_on(serve(&data, 0, pace, |port| {
        println!("{port} {ACCESS_KEY} {SECRET_KEY}");
    }));
}
