//! The manual page says what the program does, no more and no less.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command as Process;

use bucketdisk::cli::args::Cli;
use bucketdisk::cli::exit::EXIT_STATUS;
use clap::{Arg, Command, CommandFactory};

const PAGE: &str = include_str!("../man/bucketdisk.1");
const STORE: &str = "Store options";
const GENERAL: &str = "General options";

/// The page's options: section of `.Ss` or `.Sh`, then the flags of an item (`--size`, `-f`), with the item's text.
fn items() -> BTreeMap<String, Vec<(BTreeSet<String>, String)>> {
    let mut sections: BTreeMap<String, Vec<(BTreeSet<String>, String)>> = BTreeMap::new();
    let mut section = String::new();
    for line in PAGE.lines() {
        if let Some(name) = line.strip_prefix(".Ss ").or(line.strip_prefix(".Sh ")) {
            section = name.to_owned();
            sections.entry(section.clone()).or_default();
        } else if let Some(item) = line.strip_prefix(".It ") {
            let words: Vec<&str> = item.split_whitespace().collect();
            let flags = words
                .windows(2)
                .filter(|pair| pair[0] == "Fl")
                .map(|pair| format!("-{}", pair[1]))
                .collect();
            let items = sections.entry(section.clone()).or_default();
            items.push((flags, format!("{line}\n")));
        } else if let Some((_, text)) = sections.get_mut(&section).and_then(|i| i.last_mut()) {
            text.push_str(line);
            text.push('\n');
        }
    }
    sections
}

/// An argument's flags as they are typed.
fn flags(argument: &Arg) -> BTreeSet<String> {
    let long = argument.get_long().map(|long| format!("--{long}"));
    let short = argument.get_short().map(|short| format!("-{short}"));
    long.into_iter().chain(short).collect()
}

/// A command's visible options.
fn options(command: &Command) -> Vec<&Arg> {
    command
        .get_arguments()
        .filter(|a| !a.is_positional() && !a.is_hide_set())
        .collect()
}

fn built() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// The verbs and what they are called: of a verb with verbs of its own, those.
fn verbs(command: &Command) -> Vec<(String, &Command)> {
    let nested = |verb| -> Vec<(String, &Command)> {
        let verb: &Command = verb;
        let name = |inner: &Command| format!("{} {}", verb.get_name(), inner.get_name());
        let inner: Vec<_> = verb.get_subcommands().map(|i| (name(i), i)).collect();
        match inner.is_empty() {
            true => vec![(verb.get_name().to_owned(), verb)],
            false => inner,
        }
    };
    command.get_subcommands().flat_map(nested).collect()
}

#[test]
fn every_flag_of_every_verb_is_in_the_page_and_the_reverse() {
    let (command, items) = (built(), items());
    let in_page = |section: &str| -> BTreeSet<BTreeSet<String>> {
        let items = items
            .get(section)
            .unwrap_or_else(|| panic!("no section {section}"));
        items
            .iter()
            .map(|(flags, _)| flags.clone())
            .filter(|flags| !flags.is_empty())
            .collect()
    };
    let in_code = |command: &Command| -> BTreeSet<BTreeSet<String>> {
        options(command).into_iter().map(flags).collect()
    };
    let general = in_page(GENERAL);
    assert_eq!(in_code(&command), general, "general options");
    for (name, verb) in verbs(&command) {
        let mut documented = in_page(&name);
        // Every verb has the general options; the version is the program's.
        documented.extend(
            general
                .iter()
                .filter(|flags| !flags.contains("--version"))
                .cloned(),
        );
        if verb.get_arguments().any(|a| a.get_id() == "url") {
            documented.extend(in_page(STORE));
        }
        assert_eq!(in_code(verb), documented, "options of {name}");
    }
}

#[test]
fn every_verb_has_a_section_and_a_synopsis_and_the_reverse() {
    let command = built();
    let verbs = verbs(&command);
    let verbs: BTreeSet<&str> = verbs.iter().map(|(name, _)| name.as_str()).collect();
    let synopsis: BTreeSet<&str> = PAGE
        .lines()
        .skip_while(|line| *line != ".Sh SYNOPSIS")
        .take_while(|line| *line != ".Sh DESCRIPTION")
        .filter_map(|line| line.strip_prefix(".Cm "))
        .collect();
    assert_eq!(synopsis, verbs);
    let sections: BTreeSet<&str> = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix(".Ss "))
        .filter(|name| *name != STORE && *name != GENERAL)
        .collect();
    assert_eq!(sections, verbs);
}

#[test]
fn every_default_is_in_the_page() {
    let (command, items) = (built(), items());
    for (name, verb) in verbs(&command) {
        for option in options(verb) {
            let defaults = option.get_default_values();
            let takes_values = option.get_action().takes_values();
            let [default] = defaults else { continue };
            let default = default.to_string_lossy();
            if default.is_empty() || !takes_values {
                continue;
            }
            let text = items
                .get(&name)
                .into_iter()
                .chain(items.get(STORE))
                .flatten()
                .find(|(documented, _)| *documented == flags(option))
                .map(|(_, text)| text)
                .expect("documented");
            assert!(
                text.contains(&format!("The default is {default}.\n")),
                "{name} {:?}: {text}",
                flags(option)
            );
        }
    }
}

#[test]
fn the_exit_codes_are_those_of_the_code() {
    let documented: Vec<(String, String)> = PAGE
        .lines()
        .skip_while(|line| *line != ".Sh EXIT STATUS")
        .skip(2)
        .take_while(|line| *line != ".El")
        .collect::<Vec<_>>()
        .chunks(2)
        .map(|pair| (pair[0].replace(".It ", ""), pair[1].to_owned()))
        .collect();
    let mut known = vec![("0".to_owned(), "done".to_owned())];
    known.extend(EXIT_STATUS.map(|(_, code, meaning)| (code.to_string(), meaning.to_owned())));
    assert_eq!(documented, known);
}

#[test]
fn every_variable_of_the_environment_that_the_code_reads_is_in_the_page() {
    fn read(folder: &std::path::Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                read(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("source");
            for prefix in ["\"AWS_", "\"BUCKETDISK_", "\"XDG_"] {
                let names = text.match_indices(prefix).map(|(at, _)| {
                    let name = &text[at + 1..];
                    name.chars()
                        .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
                        .collect::<String>()
                });
                found.extend(names);
            }
        }
    }
    let mut found = BTreeSet::new();
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    read(&source, &mut found);
    assert!(found.contains("BUCKETDISK_LOG"), "{found:?}");
    let environment: String = PAGE
        .lines()
        .skip_while(|line| *line != ".Sh ENVIRONMENT")
        .take_while(|line| *line != ".Sh FILES")
        .collect();
    for name in found {
        assert!(environment.contains(&name), "{name} is not in ENVIRONMENT");
    }
}

#[test]
fn the_pages_are_clean() {
    let manual = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    for entry in std::fs::read_dir(manual).expect("man") {
        let page = entry.expect("entry").path();
        let lint = Process::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(&page)
            .output();
        match lint {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success(), "{}: {said}", page.display());
            }
            Err(_) => {
                assert!(std::env::var_os("CI").is_none(), "mandoc is missing");
                eprintln!("SKIPPED: mandoc is missing, the manual pages are not checked");
            }
        }
    }
}
