//! Whether the store's create-if-absent can be relied on: some ignore `If-None-Match`, some refuse it.

use std::sync::Arc;

use bytes::Bytes;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::object::{ObjectClient, PutOutcome};

use super::{Sources, keys};

/// Creates one object twice under a key that `id` makes fresh; the second time must fail. Answers whether it did; `false` only where
/// that is `accepted`.
///
/// # Errors
/// `Unsupported` where it does not, or the store has no such operation, unless that is accepted: then nothing keeps two machines
/// from writing to one disk at a time. Else those of the object client: a store that takes no writes is found out here.
pub(super) async fn create_if_absent(
    client: &Arc<dyn ObjectClient>,
    id: Uuid,
    accepted: bool,
) -> Result<bool> {
    match try_out(client, id).await {
        Ok(()) => Ok(true),
        Err(error) if accepted && error.kind() == ErrorKind::Unsupported => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same for a change of the superblock, whose probe is as random as anything.
///
/// # Errors
/// Those of the object client; `Unsupported` where it does not work and that is not accepted.
pub async fn fences(client: &Arc<dyn ObjectClient>, accepted: bool) -> Result<bool> {
    create_if_absent(client, Sources::system().id(), accepted).await
}

async fn try_out(client: &Arc<dyn ObjectClient>, id: Uuid) -> Result<()> {
    let key = format!("{}{}", keys::PROBE_FOLDER, id);
    let body =
        Bytes::from_static(b"tries whether this store can create an object only if it is absent\n");
    let first = client.put_if_absent(&key, body.clone()).await;
    let second = match first {
        Ok(_) => client.put_if_absent(&key, body).await,
        Err(error) => Err(error),
    };
    if let Err(error) = client.delete_many(&[key]).await {
        tracing::debug!(
            error = error.chain(),
            "the probe object could not be deleted"
        );
    }
    match second {
        Ok(PutOutcome::Exists) => Ok(()),
        Ok(PutOutcome::Created) => Err(cannot_fence("it ignores If-None-Match")),
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            Err(cannot_fence("it refuses If-None-Match").with_source(error))
        }
        Err(error) => Err(error.within("cannot write to the store")),
    }
}

fn cannot_fence(how: &str) -> Error {
    let text = format!(
        "the store cannot create an object only if it is absent ({how}), so a second writer cannot be kept out: two machines \
         that have the disk mounted at the same time would destroy each other's commits and not be told. Use another store, \
         or accept that with --unsafe-no-fencing; to read, mount with --read-only"
    );
    Error::new(ErrorKind::Unsupported, text)
}
