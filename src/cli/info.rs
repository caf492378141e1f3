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
    let target = args.target.target()?;
    // The answer alone goes to the standard output.
    let stages = context.reporter.without_lines().stages();
    let outcome = context.block_on(open::inspect(&target, &stages.listener()));
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
    let geometry = info.superblock.geometry;
    json!({
        "location": url,
        "disk_id": info.superblock.id,
        "label": info.superblock.label,
        "created": seconds(info.superblock.created),
        "size_bytes": geometry.size_bytes(),
        "block_bytes": geometry.block_bytes(),
        "blocks": geometry.blocks(),
        "stored_blocks": info.stored_blocks,
        "objects": info.stored.map(|stored| stored.objects),
        "stored_bytes": info.stored.map(|stored| stored.bytes),
        "head": info.head,
        "holder": info.holder.as_ref().map(|holder| json!({
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
        ("label", superblock.label.clone()),
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
        (
            "non-zero",
            format!(
                "{} blocks ({})",
                info.stored_blocks,
                format_size(info.stored_blocks.saturating_mul(block))
            ),
        ),
    ];
    if let Some(stored) = info.stored {
        let shown = format!("{}, {}", objects(stored.objects), format_size(stored.bytes));
        lines.push(("stored", shown));
    }
    lines.push(("head", info.head.to_string()));
    lines.push((
        "held by",
        info.holder.as_ref().map_or("nobody".to_owned(), holder),
    ));
    lines.retain(|(_, value)| !value.is_empty());
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, value)| format!("{name:<10}{value}"))
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
