//! A mount that loses its store for a while: nothing is lost, nobody sees an error, and when the store is back everything is committed
//! within ten seconds without help.
//!
//! Half an hour is a matter of simulated time, with the client's retries as the program stacks them. The same on real mounts takes
//! the time it takes: a few seconds here, and as many as `BUCKETDISK_OUTAGE_SECONDS` says with `scripts/outage`.

#[path = "outage/real.rs"]
mod real;
#[path = "outage/simulated.rs"]
mod simulated;
mod support;

#[test]
fn s3_server_process() {
    support::s3_server::serve_if_asked();
}
