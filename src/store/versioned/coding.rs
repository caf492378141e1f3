//! Encoding and decoding blocks beside what the program's other tasks do.
//!
//! To pack or seal a block takes up to some hundred milliseconds of a core. So that the tasks that answer requests need not wait for it, it is
//! done on threads of its own, as many blocks at once as there are cores; the requests of other blocks are under way meanwhile.
//! Decoding is not held up by encoding: reads have their own lane.

use std::sync::Arc;
use std::thread::available_parallelism;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::block::Block;
use crate::codec::{Codec, DecodeError, Place};

/// Content up to this long is coded where it is: another thread would take longer to begin.
const SHORT_BYTES: usize = 16 << 10;
/// Where there is only a checksum to make, content up to this long is.
const SHORT_IF_LIGHT_BYTES: usize = 1 << 20;

/// The codec of a disk's blocks, and who may use it at once.
#[derive(Debug, Clone)]
pub(super) struct Coding {
    codec: Arc<dyn Codec>,
    encoders: Arc<Semaphore>,
}

impl Coding {
    pub(super) fn new(codec: Arc<dyn Codec>) -> Coding {
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        Coding {
            codec,
            encoders: Arc::new(Semaphore::new(cores)),
        }
    }

    /// The block's object.
    pub(super) async fn encode(&self, place: Place, block: &Block) -> Bytes {
        if self.is_short(block.bytes().len()) {
            return self.codec.encode(&place, block.bytes());
        }
        // The semaphore is never closed; without a place it is only more at once.
        let _encoder = self.encoders.acquire().await;
        let (codec, block) = (Arc::clone(&self.codec), block.clone());
        apart(move || codec.encode(&place, block.bytes())).await
    }

    /// What [`Codec::decode`] answers.
    pub(super) async fn decode(&self, place: Place, object: Bytes) -> Result<Bytes, DecodeError> {
        if self.is_short(object.len()) {
            return self.codec.decode(&place, object);
        }
        let codec = Arc::clone(&self.codec);
        apart(move || codec.decode(&place, object)).await
    }

    fn is_short(&self, bytes: usize) -> bool {
        bytes <= SHORT_BYTES || (bytes <= SHORT_IF_LIGHT_BYTES && self.codec.is_light())
    }
}

/// Runs something on a thread of its own.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(gone) => match gone.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down: nobody waits for this task any more.
            Err(_) => std::future::pending().await,
        },
    }
}
