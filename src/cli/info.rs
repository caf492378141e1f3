//! `bucketdisk info`.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Context;
use super::args::InfoArgs;
use crate::config::{format_duration, format_size};
use crate::error::Result;
use crate::open::{self, DiskInfo, Holder};

/// Describes a disk.
///
/// # Errors
/// `Usage`; those of [`open::inspect`].
pub fn run(args: &InfoArgs, context: &Context) -> Result<()> {
    let (target, access) = args.disk.target_and_access()?;
    // The answer alone goes to the standard output.
    let stages = context.reporter.without_lines().stages();
    let outcome = context.block_on(open::inspect(&target, &access, &stages.listener()));
    stages.finish(outcome.is_ok());
    let info = outcome?;
    if let Some(rollback) = &info.rollback {
        let refusal = rollback.refusal(&target.url()).chain();
        context.reporter.warning(&refusal);
    }
    if args.json {
        context.answer(&format!("{:#}", figures(&target.url(), &info)))
    } else {
        context.answer(&text(&target.url(), &info))
    }
}

fn figures(url: &str, info: &DiskInfo) -> Value {
    let (superblock, inner) = (&info.superblock, info.inner.as_ref());
    let geometry = superblock.geometry;
    let slots = superblock.encryption.as_ref();
    json!({
        "location": url,
        "disk_id": superblock.id,
        "generation": superblock.generation,
        "compression": superblock.compression.to_string(),
        "encrypted": slots.is_some(),
        "key_slots": slots.map(|encryption| encryption.slots.len()),
        "label": inner.map(|inner| &inner.label),
        "created": seconds(info.superblock.created),
        "size_bytes": geometry.size_bytes(),
        "block_bytes": geometry.block_bytes(),
        "blocks": geometry.blocks(),
        "stored_blocks": inner.map(|inner| inner.stored_blocks),
        "objects": info.stored.map(|stored| stored.objects),
        "stored_bytes": info.stored.map(|stored| stored.bytes),
        "head": inner.map(|inner| inner.head),
        "holder": inner.and_then(|inner| inner.holder.as_ref()).map(|holder| json!({
            "session": holder.session.to_string(),
            "host": holder.host,
            "pid": holder.pid,
            "since": seconds(holder.since),
            "last_record": seconds(holder.last_record),
        })),
        "rollback": info.rollback.map(|rollback| rollback.to_string()),
    })
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn text(url: &str, info: &DiskInfo) -> String {
    let superblock = &info.superblock;
    let geometry = superblock.geometry;
    let block = u64::from(geometry.block_bytes());
    let mut lines = vec![
        ("disk", url.to_owned()),
        ("id", superblock.id.to_string()),
        (
            "label",
            info.inner
                .as_ref()
                .map(|inner| inner.label.clone())
                .unwrap_or_default(),
        ),
        ("created", date(superblock.created)),
        (
            "size",
            format!(
                "{} in {} blocks of {}",
                format_size(geometry.size_bytes()),
                geometry.blocks(),
                format_size(block)
            ),
        ),
        ("compress", superblock.compression.to_string()),
    ];
    if let Some(encryption) = &superblock.encryption {
        let shown = format!("XChaCha20-Poly1305, key slots: {}", encryption.slots.len());
        lines.push(("encrypted", shown));
    }
    if let Some(inner) = &info.inner {
        let shown = format!(
            "{} blocks ({})",
            inner.stored_blocks,
            format_size(inner.stored_blocks.saturating_mul(block))
        );
        lines.push(("non-zero", shown));
    }
    if let Some(stored) = info.stored {
        let shown = format!("{}, {}", objects(stored.objects), format_size(stored.bytes));
        lines.push(("stored", shown));
    }
    match &info.inner {
        Some(inner) => {
            lines.push(("head", inner.head.to_string()));
            let held_by = inner.holder.as_ref().map_or("nobody".to_owned(), holder);
            lines.push(("held by", held_by));
        }
        None => {
            let remedy = "what more there is to tell takes a passphrase or key file";
            lines.push(("sealed", remedy.to_owned()));
        }
    }
    lines.retain(|(_, value)| !value.is_empty());
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, value)| format!("{name:<11}{value}"))
        .collect();
    lines.join("\n")
}

fn holder(holder: &Holder) -> String {
    let age = SystemTime::now()
        .duration_since(holder.last_record)
        .unwrap_or_default();
    format!(
        "{}, process {}, since {}; last heard of {} ago",
        holder.host,
        holder.pid,
        date(holder.since),
        format_duration(age)
    )
}

fn date(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// So many objects, in words.
pub(super) fn objects(count: u64) -> String {
    match count {
        1 => "1 object".to_owned(),
        _ => format!("{count} objects"),
    }
}
