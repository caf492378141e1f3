//! `bucketdisk key`.

use serde_json::{Value, json};

use super::Context;
use super::key_args::{KeyAddArgs, KeyListArgs, KeyRemoveArgs, KeyVerb, KeyVerbArgs};
use crate::codec::slots::KeySlot;
use crate::config::format_size;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{self, Superblock};

/// Does what is asked of a disk's key slots.
///
/// # Errors
/// Those of the verb.
pub fn run(args: &KeyVerbArgs, context: &Context) -> Result<()> {
    match &args.verb {
        KeyVerb::Add(args) => add(args, context),
        KeyVerb::Change(args) => change(args, context),
        KeyVerb::Remove(args) => remove(args, context),
        KeyVerb::List(args) => list(args, context),
    }
}

fn add(args: &KeyAddArgs, context: &Context) -> Result<()> {
    let (target, access) = args.disk.target_and_access()?;
    let new = args.new.given(&target.url());
    let added = open::add_key(
        &target,
        &access,
        &new,
        args.kdf.wish(),
        args.unsafe_no_fencing,
    );
    let number = context.block_on(added)?;
    context
        .reporter
        .line(&format!("added key slot {number} of {}", target.url()));
    Ok(())
}

fn change(args: &KeyAddArgs, context: &Context) -> Result<()> {
    let (target, access) = args.disk.target_and_access()?;
    let new = args.new.given(&target.url());
    let changed = open::change_key(
        &target,
        &access,
        &new,
        args.kdf.wish(),
        args.unsafe_no_fencing,
    );
    let number = context.block_on(changed)?;
    context.reporter.line(&format!(
        "changed key slot {number} of {}: what opened it opens it no more",
        target.url()
    ));
    Ok(())
}

fn remove(args: &KeyRemoveArgs, context: &Context) -> Result<()> {
    let (target, access) = args.disk.target_and_access()?;
    let removed = open::remove_key(&target, &access, args.remove_slot, args.unsafe_no_fencing);
    let number = context.block_on(removed)?;
    context
        .reporter
        .line(&format!("removed key slot {number} of {}", target.url()));
    Ok(())
}

fn list(args: &KeyListArgs, context: &Context) -> Result<()> {
    let (target, access) = args.disk.target_and_access()?;
    let superblock = context.block_on(open::key_slots(&target, &access))?;
    let Some(encryption) = &superblock.encryption else {
        let text = format!("{} is not encrypted: it has no key slots", target.url());
        return Err(Error::new(ErrorKind::Usage, text));
    };
    match args.json {
        true => context.answer(&format!("{:#}", figures(&superblock, &encryption.slots))),
        false => {
            let lines: Vec<String> = encryption.slots.iter().map(line).collect();
            context.answer(&lines.join("\n"))
        }
    }
}

fn figures(superblock: &Superblock, slots: &[KeySlot]) -> Value {
    json!({
        "disk_id": superblock.id,
        "generation": superblock.generation,
        "slots": slots.iter().map(|slot| json!({
            "slot": slot.id,
            "kind": slot.kind,
            "created": slot.created,
            "kdf": slot.kdf,
        })).collect::<Vec<_>>(),
    })
}

fn line(slot: &KeySlot) -> String {
    format!(
        "{:>2}  {:<10}  made {}, Argon2id with {} in {} passes",
        slot.id,
        slot.kind.name(),
        slot.created,
        format_size(u64::from(slot.kdf.memory_kib) << 10),
        slot.kdf.passes,
    )
}
