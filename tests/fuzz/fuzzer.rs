//! One fuzzer for every target of `targets.rs`: the variable `BUCKETDISK_FUZZ_TARGET` says which. The rest is libFuzzer's.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../support/local_disk.rs"]
#[allow(dead_code)]
mod local_disk;
mod targets;

static TARGET: LazyLock<targets::Run> = LazyLock::new(|| {
    let name =
        std::env::var("BUCKETDISK_FUZZ_TARGET").expect("BUCKETDISK_FUZZ_TARGET names a target");
    let target = targets::ALL.iter().find(|target| target.name == name);
    target.expect("BUCKETDISK_FUZZ_TARGET names a target").run
});

fuzz_target!(|input: &[u8]| TARGET(input));
