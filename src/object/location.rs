//! Where the objects are: the URL given on the command line, taken apart and put together again.
//!
//! Pure values: nothing here looks whether the place exists. A URL never carries credentials, and none is ever echoed.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

/// The longest prefix in bytes: S3 keys hold 1,024, and the keys under a prefix need theirs.
const MAX_PREFIX_BYTES: usize = 896;

/// The schemes there are, for messages.
const SCHEMES: &str = "s3://bucket[/prefix], file:///directory, memory:";

/// A bucket, or what stands for one, and the prefix in it. Prefixes neither begin nor end with `/`; empty means the whole bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A bucket of an S3 store.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// The prefix in the bucket.
        prefix: String,
    },
    /// A local or mounted directory.
    File {
        /// The directory, absolute, which stands for the bucket: it is never made.
        directory: PathBuf,
        /// The sub-directory of it, which is made when something is stored there.
        prefix: String,
    },
    /// The memory of this process: empty with every connection, for tests.
    Memory {
        /// The prefix of the keys.
        prefix: String,
    },
}

impl Location {
    /// Reads a URL: `s3://bucket[/prefix]`, `file:///absolute/directory` or `memory:`. `%` and two hexadecimal digits stand for a
    /// byte, as in any URL.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], naming what is wrong and what to write instead.
    pub fn parse(url: &str) -> Result<Location> {
        let Some((scheme, rest)) = url.split_once(':') else {
            return usage(format!("a location begins with a scheme: write {SCHEMES}"));
        };
        let rest = rest.strip_prefix("//").map_or_else(
            || Written {
                text: rest,
                authority: false,
            },
            |text| Written {
                text,
                authority: true,
            },
        );
        match scheme {
            "s3" => parse_s3(&rest),
            "file" => parse_file(&rest),
            "memory" if rest.text.is_empty() => Ok(Location::Memory {
                prefix: String::new(),
            }),
            "memory" => usage("memory: takes nothing after the colon: use --prefix"),
            _ => usage(format!("there is no scheme '{scheme}': write {SCHEMES}")),
        }
    }

    /// The same place with `prefix` (the option's text, taken literally) under the URL's own prefix. Empty adds nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the prefix has an empty, `.` or `..` part, a control character, or is too long.
    pub fn with_prefix(mut self, prefix: &str) -> Result<Location> {
        let added = normalised(prefix)?;
        let own = match &mut self {
            Location::S3 { prefix, .. }
            | Location::File { prefix, .. }
            | Location::Memory { prefix } => prefix,
        };
        let joined = match (own.is_empty(), added.is_empty()) {
            (true, _) => added,
            (false, true) => own.clone(),
            (false, false) => format!("{own}/{added}"),
        };
        *own = normalised(&joined)?;
        Ok(self)
    }

    /// The prefix, without `/` at either end; empty for the whole bucket.
    pub fn prefix(&self) -> &str {
        match self {
            Location::S3 { prefix, .. }
            | Location::File { prefix, .. }
            | Location::Memory { prefix } => prefix,
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::S3 { bucket, .. } => write!(f, "s3://{bucket}")?,
            Location::File { directory, .. } => {
                let path = encoded(&directory.to_string_lossy());
                // "/" itself ends in the slash that would come before the prefix
                match (path.as_str(), self.prefix().is_empty()) {
                    ("/", false) => f.write_str("file://")?,
                    _ => write!(f, "file://{path}")?,
                }
            }
            Location::Memory { prefix } => return write!(f, "memory:{}", encoded(prefix)),
        }
        match self.prefix() {
            "" => Ok(()),
            prefix => write!(f, "/{}", encoded(prefix)),
        }
    }
}

/// What follows the scheme's colon.
struct Written<'a> {
    /// Without the two slashes that may lead it.
    text: &'a str,
    /// Whether there were two slashes.
    authority: bool,
}

fn parse_s3(rest: &Written<'_>) -> Result<Location> {
    if !rest.authority {
        return usage("an S3 location begins with s3://: write s3://bucket[/prefix]");
    }
    let (bucket, prefix) = rest.text.split_once('/').unwrap_or((rest.text, ""));
    if bucket.contains('@') {
        return usage(
            "credentials do not belong in a URL: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a --profile",
        );
    }
    refuse_query(rest.text)?;
    if bucket.is_empty() {
        return usage("the URL names no bucket: write s3://bucket[/prefix]");
    }
    if let Some(wrong) = bucket
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '-' | '_'))
    {
        // not echoed whole: "s3://key:secret" is a mistake that people make
        return usage(format!(
            "a bucket's name has no '{wrong}' in it: write s3://bucket[/prefix], and the server as --endpoint"
        ));
    }
    if prefix.starts_with('/') {
        return usage("the prefix has an empty part: write one slash after the bucket");
    }
    Ok(Location::S3 {
        bucket: bucket.to_owned(),
        prefix: normalised(&decoded(prefix)?)?,
    })
}

fn parse_file(rest: &Written<'_>) -> Result<Location> {
    if !rest.authority || !rest.text.starts_with('/') {
        return usage(
            "a file location is an absolute path after three slashes: write file:///directory",
        );
    }
    refuse_query(rest.text)?;
    let path = decoded(rest.text)?;
    if path.contains('\0') {
        return usage("a path has no zero byte in it");
    }
    // components drop the slashes that say nothing, at the end and doubled
    let directory: PathBuf = Path::new(&path).components().collect();
    Ok(Location::File {
        directory,
        prefix: String::new(),
    })
}

fn refuse_query(text: &str) -> Result<()> {
    match text.find(['?', '#']) {
        None => Ok(()),
        Some(_) => usage(
            "a location has no query and no fragment, and credentials do not belong in a URL: write ? as %3F and # as %23",
        ),
    }
}

/// A prefix without the one slash that may lead or end it, checked part by part.
fn normalised(prefix: &str) -> Result<String> {
    let prefix = prefix.strip_prefix('/').unwrap_or(prefix);
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    if prefix.is_empty() {
        return Ok(String::new());
    }
    if prefix.len() > MAX_PREFIX_BYTES {
        return usage(format!(
            "the prefix is {} bytes long: use at most {MAX_PREFIX_BYTES}",
            prefix.len()
        ));
    }
    for part in prefix.split('/') {
        if part.is_empty() {
            return usage(format!(
                "prefix '{}' has an empty part: write one slash between parts",
                prefix.escape_debug()
            ));
        }
        if part == "." || part == ".." {
            return usage(format!(
                "prefix '{prefix}' has a part '{part}': leave it out"
            ));
        }
        if part.chars().any(char::is_control) {
            return usage(format!(
                "prefix '{}' has a control character in it",
                prefix.escape_debug()
            ));
        }
    }
    Ok(prefix.to_owned())
}

/// The text with every `%XX` replaced by its byte.
fn decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first != b'%' {
            bytes.push(first);
            rest = tail;
            continue;
        }
        let byte = tail
            .get(..2)
            .filter(|two| two.iter().all(u8::is_ascii_hexdigit))
            .and_then(|two| std::str::from_utf8(two).ok())
            .and_then(|two| u8::from_str_radix(two, 16).ok());
        let Some(byte) = byte else {
            return usage(
                "a % in a URL is followed by two hexadecimal digits: write % itself as %25",
            );
        };
        bytes.push(byte);
        rest = tail.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes)
        .or_else(|_| usage("the URL, once its %XX are decoded, is not UTF-8 text"))
}

/// The text with what would not read back replaced by `%XX`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '%' | '?' | '#' | ' ') || c.is_ascii_control() {
            out.push_str(&format!("%{:02X}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

fn usage<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::Usage, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Location {
        Location::parse(url).expect(url)
    }

    #[test]
    fn a_url_reads_back_as_it_was_written() {
        for url in [
            "s3://bucket",
            "s3://bucket/prefix/of/two",
            "s3://bucket/a%20b%25",
            "file:///srv/disks",
            "file:///",
            "file:///srv/my%20disks",
            "memory:",
        ] {
            assert_eq!(parse(url).to_string(), url);
            assert_eq!(parse(&parse(url).to_string()), parse(url));
        }
    }

    #[test]
    fn slashes_that_say_nothing_are_dropped() {
        assert_eq!(parse("s3://bucket/").to_string(), "s3://bucket");
        assert_eq!(parse("s3://bucket/a/b/").prefix(), "a/b");
        assert_eq!(
            parse("file:///srv//disks/").to_string(),
            "file:///srv/disks"
        );
    }

    #[test]
    fn a_prefix_is_added_to_the_url_s_own() {
        let both = parse("s3://bucket/a").with_prefix("/b/c/").expect("prefix");
        assert_eq!(both.to_string(), "s3://bucket/a/b/c");
        let none = parse("s3://bucket/a").with_prefix("").expect("no prefix");
        assert_eq!(none.prefix(), "a");
        let file = parse("file:///srv").with_prefix("my disk").expect("prefix");
        assert_eq!(file.to_string(), "file:///srv/my%20disk");
        assert_eq!(
            file,
            Location::File {
                directory: PathBuf::from("/srv"),
                prefix: "my disk".to_owned()
            }
        );
        let root = parse("file:///").with_prefix("disks").expect("prefix");
        assert_eq!(root.to_string(), "file:///disks");
    }

    #[test]
    fn what_cannot_be_meant_is_a_usage_error_that_says_so() {
        for (url, says) in [
            ("bucket/prefix", "s3://bucket"),
            ("gs://bucket", "there is no scheme 'gs'"),
            ("https://bucket.example", "file:///directory"),
            ("s3:bucket", "s3://bucket[/prefix]"),
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
            ("s3://host:9000/bucket", "--endpoint"),
            ("s3://bucket/a//b", "empty part"),
            ("s3://bucket//b", "empty part"),
            ("s3://bucket/a/../b", "'..'"),
            ("s3://bucket/%2e%2e/b", "'..'"),
            ("s3://bucket/a?x=1", "no query"),
            ("s3://bucket/a#x", "no fragment"),
            ("s3://bucket/a%0ab", "control character"),
            ("s3://bucket/a%zz", "hexadecimal"),
            ("s3://bucket/a%f", "hexadecimal"),
            ("s3://bucket/a%ff", "not UTF-8"),
            ("file://relative", "absolute path"),
            ("file:relative", "absolute path"),
            ("memory:x", "--prefix"),
        ] {
            let error = Location::parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Usage, "{url}");
            assert!(error.to_string().contains(says), "{url}: {error}");
        }
        for prefix in ["..", "a//b", "//b", "a/./b", "a\nb"] {
            let error = parse("memory:").with_prefix(prefix).expect_err(prefix);
            assert_eq!(error.kind(), ErrorKind::Usage, "{prefix}");
        }
        let long = "x/".repeat(500);
        assert!(parse("memory:").with_prefix(&long).is_err());
    }

    #[test]
    fn credentials_in_a_url_are_refused_and_not_repeated() {
        for url in [
            "s3://AKIA:hunter2@bucket/x",
            "s3://AKIA:hunter2",
            "s3://b/x?secret=hunter2",
        ] {
            let error = Location::parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        let error = Location::parse("s3://AKIA:hunter2@bucket/x").expect_err("userinfo");
        assert!(
            error
                .to_string()
                .contains("credentials do not belong in a URL")
        );
    }
}
