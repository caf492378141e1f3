//! The superblock, as far as it is read.

use bucketdisk::store::versioned::{Superblock, keys};

use super::scene::{Made, Way};

#[tokio::test(start_paused = true)]
async fn an_altered_superblock_is_refused_or_says_what_it_said() {
    let scene = Made::new(Way::Plain).build().await;
    let json = scene.bucket.body(keys::SUPERBLOCK).expect("is there");
    let sound = Superblock::parse(&json).expect("is sound");
    let mut cases = 0;
    let mut check = |altered: &[u8]| {
        cases += 1;
        if let Ok(superblock) = Superblock::parse(altered) {
            assert_eq!(superblock, sound, "{}", String::from_utf8_lossy(altered));
        }
    };
    for at in 0..json.len() {
        for bit in 0..8 {
            let mut altered = json.to_vec();
            altered[at] ^= 1 << bit;
            check(&altered);
        }
        check(&json[..at]);
        check(&[&json[..at], &json[at + 1..]].concat());
        check(&[&json[..at], &json[at..at + 1], &json[at..]].concat());
    }
    check(&[&json[..], &json[..]].concat());
    for (_, _, body) in scene.objects() {
        check(&body);
    }
    println!("superblock: {cases} cases");
    assert!(cases > 8 * json.len());
}
