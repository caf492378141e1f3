//! What can go wrong with a request, and what a request is.

use std::time::Duration;

use bucketdisk::error::{Error, ErrorKind};

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never reaches the store.
    Before(ErrorKind),
    /// The store applies it, but the answer is lost.
    Answer(ErrorKind),
    /// The store refuses it with this status, and may say for how long it wants to be left alone.
    Status(u16, Option<Duration>),
    /// The connection is reset at once. The request, already on its way, lands so much later (perhaps after its retry has
    /// succeeded), or never.
    Reset(Option<Duration>),
    /// No answer comes until the client gives up waiting. The request lands so long after it was sent, or never.
    Stall(Option<Duration>),
    /// Nothing is heard of it until [`Faulty::always`](super::Faulty::always) is told of something else, which is when it reaches the
    /// store; or for so long, and then it counts as `Unreachable`, and never does.
    Silence(Duration),
    /// It is applied and answered; a duplicate of it lands so much later.
    Twice(Duration),
    /// It reaches the store so much later.
    Delay(Duration),
    /// Its body is cut to so many bytes. A `get` answers what is left of it as if it were all; of any other request it is noticed,
    /// by the store or by the client: nothing is applied.
    Truncated(usize),
    /// Of a deletion the first half is done, then the connection breaks. Of anything else, nothing is done.
    Part,
    /// A listing comes in pages of so many entries. Nothing happens to other requests.
    Pages(usize),
    /// A listing shows what there was so long ago. Nothing happens to other requests.
    Lag(Duration),
}

impl Fault {
    /// What it counts as.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Before(_) => "lost requests",
            Fault::Answer(_) => "lost answers",
            Fault::Status(403, _) => "403",
            Fault::Status(429, _) => "429",
            Fault::Status(503, Some(_)) => "503 with Retry-After",
            Fault::Status(..) => "other 5xx",
            Fault::Reset(None) => "resets",
            Fault::Reset(Some(_)) => "resets of requests that land late",
            Fault::Stall(None) => "stalls",
            Fault::Stall(Some(_)) => "stalls of requests that land",
            Fault::Silence(_) => "silence",
            Fault::Twice(_) => "duplicates",
            Fault::Delay(_) => "delays",
            Fault::Truncated(_) => "truncated bodies",
            Fault::Part => "half deletions",
            Fault::Pages(_) => "short pages",
            Fault::Lag(_) => "lagging listings",
        }
    }

    /// Whether it is one for requests of that kind.
    pub fn suits(self, request: &Request) -> bool {
        let list = matches!(request, Request::List(_));
        match self {
            Fault::Pages(_) | Fault::Lag(_) => list,
            _ => true,
        }
    }

    /// The error of a request that was refused and not applied, of the kind that the real client makes of it.
    pub(super) fn refusal(self, context: String) -> Error {
        match self {
            Fault::Before(kind) | Fault::Answer(kind) => Error::new(kind, context),
            Fault::Status(status, retry_after) => {
                let kind = match status {
                    401 | 403 => ErrorKind::Denied,
                    429 | 500 | 502..=504 => ErrorKind::Unreachable,
                    507 => ErrorKind::Full,
                    _ => ErrorKind::System,
                };
                let text = format!("{context}: the store answered {status}");
                Error::new(kind, text).with_retry_after(retry_after)
            }
            other => Error::new(ErrorKind::Unreachable, format!("{context}: {other:?}")),
        }
    }
}

/// A request as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `get` of a key.
    Get(String),
    /// `put` of a key.
    Put(String),
    /// `put_if_absent` of a key.
    PutIfAbsent(String),
    /// `delete_many` of keys.
    Delete(Vec<String>),
    /// `list` of a folder.
    List(String),
}
