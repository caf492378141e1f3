//! `-o` as mount(8) passes it, turned into the options that the command line has anyway, so that each option is defined once.
//!
//! Every long option of `mount` may be given in `-o` by its name without the dashes, with `-` or `_` between words. Beside them
//! there are the options every file system takes: those for the kernel are passed on, those for mount(8) and systemd are left to
//! them. Anything else is refused by name.

use std::ffi::OsString;

use clap::CommandFactory;

use super::args::Cli;
use crate::error::{Error, ErrorKind, Result};

/// A command line with its `-o` options spelled out.
#[derive(Debug, PartialEq, Eq)]
pub struct Expanded {
    /// The line for clap: the options from `-o` come first, so that one given on the line itself wins.
    pub line: Vec<OsString>,
    /// Options of the kernel's own, to be passed on, in order.
    pub kernel: Vec<String>,
}

/// Options that the kernel (or fusermount3) acts on.
const KERNEL: [&str; 11] = [
    "dev", "nodev", "suid", "nosuid", "exec", "noexec", "atime", "noatime", "sync", "async",
    "dirsync",
];

/// Options that mount(8), readers of fstab and systemd act on, and those that change nothing here: there is one directory, and
/// the kernel always checks permissions.
const OTHERS: [&str; 18] = [
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "diratime",
    "nodiratime",
    "default_permissions",
];

/// Spells out a command line: `bucketdisk URL DIR ...`, as mount.fuse(8) calls it, becomes `bucketdisk mount URL DIR ...`, and
/// what `-o` says becomes options.
///
/// # Errors
/// `Usage`, naming the option that is not known, lacks its value, or takes none.
pub fn expand(line: impl IntoIterator<Item = OsString>) -> Result<Expanded> {
    let mut line: Vec<OsString> = line.into_iter().collect();
    let first = line.get(1).and_then(|a| a.to_str()).unwrap_or_default();
    if !first.starts_with('-') && (first.contains("://") || first.starts_with("memory:")) {
        line.insert(1, "mount".into());
    }
    let mut kernel = Vec::new();
    let Some(verb) = line.iter().skip(1).position(|a| {
        a.to_str().is_some_and(|a| {
            Cli::command()
                .get_subcommands()
                .any(|verb| verb.get_name() == a)
        })
    }) else {
        return Ok(Expanded { line, kernel });
    };
    let verb = verb + 1;
    if line.get(verb).is_some_and(|v| v == "mount") {
        let mut read_only = false;
        let mut expanded = Vec::new();
        for list in lists(line.iter().skip(verb + 1)) {
            for option in split(&list) {
                match classify(&option)? {
                    Meaning::Argument(argument) => expanded.push(OsString::from(argument)),
                    Meaning::ReadOnly(on) => read_only = on,
                    Meaning::Kernel => kernel.push(option),
                    Meaning::NotOurs => {}
                }
            }
        }
        if read_only {
            expanded.push("--read-only".into());
        }
        line.splice(verb + 1..verb + 1, expanded);
    }
    Ok(Expanded { line, kernel })
}

/// What one option of `-o` means.
enum Meaning {
    Argument(String),
    ReadOnly(bool),
    Kernel,
    NotOurs,
}

fn classify(option: &str) -> Result<Meaning> {
    let usage = |text: String| Err(Error::new(ErrorKind::Usage, text));
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    match name {
        "ro" | "rw" if value.is_none() => return Ok(Meaning::ReadOnly(name == "ro")),
        "comment" => return Ok(Meaning::NotOurs),
        _ if name.starts_with("x-") || name.starts_with("X-") => return Ok(Meaning::NotOurs),
        _ if value.is_none() && OTHERS.contains(&name) => return Ok(Meaning::NotOurs),
        _ if value.is_none() && KERNEL.contains(&name) => return Ok(Meaning::Kernel),
        _ => {}
    }
    let long = name.replace('_', "-");
    let command = Cli::command();
    let argument = command
        .get_subcommands()
        .find(|verb| verb.get_name() == "mount")
        .into_iter()
        .flat_map(|verb| verb.get_arguments().chain(command.get_arguments()))
        .find(|a| a.get_long() == Some(long.as_str()) && !a.is_hide_set());
    let Some(argument) = argument else {
        return usage(format!("unknown mount option '{name}' in -o"));
    };
    match (argument.get_action().takes_values(), value) {
        (true, Some(value)) => Ok(Meaning::Argument(format!("--{long}={value}"))),
        (false, None) => Ok(Meaning::Argument(format!("--{long}"))),
        (true, None) => usage(format!(
            "mount option '{name}' in -o needs a value: {name}=..."
        )),
        (false, Some(_)) => usage(format!("mount option '{name}' in -o takes no value")),
    }
}

/// The arguments of each `-o`: `-o LIST`, `-oLIST`, and at the end of a group of short flags, `-fo LIST`.
fn lists<'a>(arguments: impl Iterator<Item = &'a OsString>) -> Vec<String> {
    let mut found = Vec::new();
    let mut arguments = arguments.map(|a| a.to_string_lossy());
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            break;
        }
        let Some(shorts) = argument.strip_prefix('-').filter(|s| !s.starts_with('-')) else {
            continue;
        };
        let Some((flags, rest)) = shorts.split_once('o') else {
            continue;
        };
        if !flags.chars().all(|f| "fvq".contains(f)) {
            continue;
        }
        match rest.strip_prefix('=').unwrap_or(rest) {
            "" => found.extend(arguments.next().map(String::from)),
            list => found.push(list.to_owned()),
        }
    }
    found
}

/// Splits at commas; `\,` is a comma and `\\` a backslash within an option, as mount.fuse(8) writes them.
fn split(list: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        let literal = match character {
            ',' => {
                options.push(String::new());
                continue;
            }
            '\\' => characters.next().unwrap_or('\\'),
            other => other,
        };
        if let Some(option) = options.last_mut() {
            option.push(literal);
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand_text(line: &str) -> Result<Expanded> {
        expand(line.split(' ').map(OsString::from))
    }

    fn line(expanded: &Expanded) -> String {
        let words: Vec<_> = expanded.line.iter().map(|a| a.to_string_lossy()).collect();
        words.join(" ")
    }

    #[test]
    fn a_line_from_mount_fuse_means_mount() {
        let expanded =
            expand_text("bucketdisk s3://b/p /mnt -o rw,nodev,path_style,_netdev,uid=5,x-a.b=c")
                .expect("expands");
        assert_eq!(
            line(&expanded),
            "bucketdisk mount --path-style --uid=5 s3://b/p /mnt -o rw,nodev,path_style,_netdev,uid=5,x-a.b=c"
        );
        assert_eq!(expanded.kernel, ["nodev"]);
    }

    #[test]
    fn the_last_of_ro_and_rw_counts() {
        let read_only = expand_text("b mount u d -o rw -o ro").expect("expands");
        assert_eq!(line(&read_only), "b mount --read-only u d -o rw -o ro");
        let writable = expand_text("b mount u d -o ro,rw").expect("expands");
        assert_eq!(line(&writable), "b mount u d -o ro,rw");
    }

    #[test]
    fn every_way_to_write_o_is_read() {
        for text in [
            "b mount u d -o take-over",
            "b mount u d -otake_over",
            "b mount u d -fo take-over",
            "b -v mount -o=take-over u d",
        ] {
            let expanded = expand_text(text).expect(text);
            assert!(line(&expanded).contains("mount --take-over"), "{text}");
        }
    }

    #[test]
    fn unknown_and_malformed_options_are_refused_by_name() {
        for (option, named) in [
            ("sizze=1g", "'sizze'"),
            ("uid", "'uid'"),
            ("allow_other=1", "'allow_other'"),
            ("daemon", "'daemon'"),
            ("ro=1", "'ro'"),
        ] {
            let error = expand_text(&format!("b mount u d -o {option}")).expect_err(option);
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_comma_can_be_part_of_a_value() {
        assert_eq!(split(r"label=a\,b\\c,,ro"), [r"label=a,b\c", "ro"]);
    }

    #[test]
    fn other_verbs_are_left_as_they_are() {
        for text in ["b create mount -o x", "b --help", "b", "b status /mnt"] {
            let expanded = expand_text(text).expect(text);
            assert_eq!(line(&expanded), text);
        }
    }
}
