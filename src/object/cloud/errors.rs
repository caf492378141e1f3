//! What went wrong, as the contract's error kinds: the one place where answers of stores and of systems are classified.
//!
//! Three sources, in this order: what the server answered (noted by [`super::answer`]), what became of the connection, what the
//! operating system said. The sentence names the operation, the key and the code; bodies of answers are never printed whole, since
//! some repeat parts of the signed request.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::client::{HttpError, HttpErrorKind};

use super::answer::{Answer, element};
use crate::error::{Error, ErrorKind};

/// What was being done, and to which key; reads "cannot read log/00000001".
#[derive(Debug, Clone, Copy)]
pub(super) struct Operation<'a> {
    verb: Verb,
    key: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Read,
    Write,
    Create,
    Delete,
    List,
}

impl<'a> Operation<'a> {
    pub(super) fn read(key: &'a str) -> Self {
        Operation {
            verb: Verb::Read,
            key,
        }
    }

    pub(super) fn write(key: &'a str) -> Self {
        Operation {
            verb: Verb::Write,
            key,
        }
    }

    pub(super) fn create(key: &'a str) -> Self {
        Operation {
            verb: Verb::Create,
            key,
        }
    }

    pub(super) fn delete(key: &'a str) -> Self {
        Operation {
            verb: Verb::Delete,
            key,
        }
    }

    pub(super) fn list(folder: &'a str) -> Self {
        Operation {
            verb: Verb::List,
            key: folder,
        }
    }

    /// An error of this operation.
    pub(super) fn error(&self, kind: ErrorKind, reason: impl fmt::Display) -> Error {
        Error::new(kind, format!("{self}: {reason}"))
    }
}

impl fmt::Display for Operation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Read => "read",
            Verb::Write => "write",
            Verb::Create => "create",
            Verb::Delete => "delete",
            Verb::List => "list",
        };
        match self.key {
            "" => write!(f, "cannot {verb} objects"),
            key => write!(f, "cannot {verb} {key}"),
        }
    }
}

/// What a message may say about the store.
#[derive(Debug, Clone, Copy)]
pub(super) struct Store<'a> {
    /// The bucket's name.
    pub(super) bucket: &'a str,
    /// The URL that requests are sent to; empty for stores without one.
    pub(super) endpoint: &'a str,
    /// The region that requests are signed for.
    pub(super) region: &'a str,
    /// Whether the bucket's name was put before the host of an endpoint that the user gave.
    pub(super) own_virtual_host: bool,
}

/// The contract's error for a failed call to an S3 store.
pub(super) fn of_store(
    operation: Operation<'_>,
    store: Store<'_>,
    error: object_store::Error,
    answer: &Answer,
) -> Error {
    let told = |status: Option<u16>, code: &str, message: &str| {
        let (kind, reason) = verdict(operation, store, status, code, message, answer);
        operation
            .error(kind, reason)
            .with_retry_after(answer.retry_after)
    };
    // a body that ends early comes after an answer that was a success, so nothing is noted then
    if let Some(status) = answer.status {
        return told(Some(status), &answer.code, &answer.message);
    }
    if let Some(own) = cause::<Error>(&error) {
        return operation.error(own.kind(), own.chain());
    }
    if let Some(http) = cause::<HttpError>(&error) {
        return transport(operation, store, http);
    }
    // answers of status 200 that are errors: DeleteObjects as a whole, and one key of it
    let text = error.to_string();
    if let Some(code) = element(&text, "Code") {
        return told(None, &code, &element(&text, "Message").unwrap_or_default());
    }
    if let Some((_, code)) = text.rsplit_once("(code: ") {
        let key = text
            .split_once("failed for key ")
            .and_then(|(_, rest)| rest.split_once(": "))
            .map_or(operation.key, |(key, _)| key);
        let operation = Operation { key, ..operation };
        let (kind, reason) = verdict(
            operation,
            store,
            None,
            code.trim_end_matches(')'),
            "",
            answer,
        );
        return operation.error(kind, reason);
    }
    of_system(operation, error)
}

/// The contract's error for a failed call to a directory, or to memory.
pub(super) fn of_system(operation: Operation<'_>, error: object_store::Error) -> Error {
    if let Some(io) = cause::<io::Error>(&error) {
        return of_io(operation, io);
    }
    let kind = match &error {
        object_store::Error::NotFound { .. } => ErrorKind::NotFound,
        object_store::Error::AlreadyExists { .. } => ErrorKind::Exists,
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => {
            ErrorKind::Unsupported
        }
        _ => ErrorKind::System,
    };
    match kind {
        ErrorKind::NotFound => operation.error(kind, "no such object"),
        _ => Error::new(kind, operation.to_string()).with_source(error),
    }
}

/// The contract's error for a system call that failed.
pub(super) fn of_io(operation: Operation<'_>, error: &io::Error) -> Error {
    use io::ErrorKind as Io;
    let no_links = operation.verb == Verb::Create
        && matches!(
            error
                .raw_os_error()
                .map(rustix::io::Errno::from_raw_os_error),
            Some(rustix::io::Errno::PERM | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::MLINK)
        );
    if no_links {
        let reason =
            format!("the file system has no hard links, which create-if-absent needs ({error})");
        return operation.error(ErrorKind::Unsupported, reason);
    }
    let kind = match error.kind() {
        Io::NotFound => return operation.error(ErrorKind::NotFound, "no such object"),
        Io::PermissionDenied => ErrorKind::Denied,
        Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
        Io::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Io::TimedOut
        | Io::StaleNetworkFileHandle
        | Io::NotConnected
        | Io::ConnectionReset
        | Io::ConnectionAborted
        | Io::ConnectionRefused
        | Io::HostUnreachable
        | Io::NetworkUnreachable
        | Io::NetworkDown => ErrorKind::Unreachable,
        _ => ErrorKind::System,
    };
    operation.error(kind, error)
}

/// Kind and reason of an answer by the server.
fn verdict(
    operation: Operation<'_>,
    store: Store<'_>,
    status: Option<u16>,
    code: &str,
    message: &str,
    answer: &Answer,
) -> (ErrorKind, String) {
    let kind = kind_of(status, code);
    let said = said(status, code, message);
    let reason = match kind {
        ErrorKind::NotFound if code == "NoSuchBucket" || operation.verb != Verb::Read => {
            format!(
                "no such bucket: {}: check its name and the endpoint, or make it",
                store.bucket
            )
        }
        ErrorKind::NotFound => "no such object".to_owned(),
        ErrorKind::Usage if wrong_region(status, code) => match &answer.region {
            Some(region) if region != store.region => format!(
                "bucket {} is in region {region}, not {}: give --region {region}",
                store.bucket, store.region
            ),
            _ => format!(
                "bucket {} is not to be had in region {} of {}: give its --region or --endpoint ({said})",
                store.bucket, store.region, store.endpoint
            ),
        },
        ErrorKind::Denied => format!("the store answered {said}: {}", remedy_of_denial(code)),
        _ => format!("the store answered {said}"),
    };
    (kind, reason)
}

/// What may help against a refusal.
fn remedy_of_denial(code: &str) -> &'static str {
    match code {
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => "renew the credentials",
        "RequestTimeTooSkewed" => "set this machine's clock",
        "InvalidAccessKeyId" | "NotSignedUp" | "SignatureDoesNotMatch" => "check the credentials",
        _ => "check the credentials and what they permit",
    }
}

/// "503 SlowDown (Please reduce your request rate.)", as much of it as there is.
fn said(status: Option<u16>, code: &str, message: &str) -> String {
    let mut text = status.map(|status| status.to_string()).unwrap_or_default();
    if !code.is_empty() {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(code);
    }
    if !message.is_empty() {
        text.push_str(&format!(" ({message})"));
    }
    text
}

/// What the caller may do about an answer: by its code where that says more than the status, by the status otherwise.
fn kind_of(status: Option<u16>, code: &str) -> ErrorKind {
    match code {
        "NoSuchBucket" | "NoSuchKey" => return ErrorKind::NotFound,
        "InvalidBucketName" => return ErrorKind::Usage,
        "AccessDenied"
        | "AccountProblem"
        | "AllAccessDisabled"
        | "ExpiredToken"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "NotSignedUp"
        | "RequestTimeTooSkewed"
        | "SignatureDoesNotMatch"
        | "TokenRefreshRequired" => return ErrorKind::Denied,
        "QuotaExceeded"
        | "EntityTooLarge"
        | "InsufficientCapacity"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded" => return ErrorKind::Full,
        "NotImplemented" | "MethodNotAllowed" => return ErrorKind::Unsupported,
        // damaged or cut on the way (400), another request for the same key at work (409), too slow a sender (400)
        "BadDigest"
        | "ConditionalRequestConflict"
        | "IncompleteBody"
        | "InternalError"
        | "OperationAborted"
        | "RequestTimeout"
        | "ServiceUnavailable"
        | "SlowDown"
        | "Throttling"
        | "TooManyRequests" => {
            return ErrorKind::Unreachable;
        }
        _ => {}
    }
    if wrong_region(status, code) {
        return ErrorKind::Usage;
    }
    match status {
        Some(401 | 403) => ErrorKind::Denied,
        Some(404) => ErrorKind::NotFound,
        Some(405 | 501) => ErrorKind::Unsupported,
        Some(413 | 507) => ErrorKind::Full,
        Some(408 | 409 | 425 | 429 | 500..=599) => ErrorKind::Unreachable,
        _ => ErrorKind::System,
    }
}

fn wrong_region(status: Option<u16>, code: &str) -> bool {
    matches!(status, Some(301 | 302 | 307 | 308))
        || matches!(
            code,
            "AuthorizationHeaderMalformed"
                | "IllegalLocationConstraintException"
                | "PermanentRedirect"
                | "TemporaryRedirect"
        )
}

/// The error for a request that got no answer, or only part of one: all of them may pass.
fn transport(operation: Operation<'_>, store: Store<'_>, error: &HttpError) -> Error {
    let mut root: &dyn StdError = error;
    while let Some(next) = root.source() {
        root = next;
    }
    let endpoint = store.endpoint;
    let reason = match error.kind() {
        HttpErrorKind::Connect if store.own_virtual_host => format!(
            "no connection to {endpoint}: {root} (give --path-style if the server wants the bucket in the path)"
        ),
        HttpErrorKind::Connect => format!("no connection to {endpoint}: {root}"),
        HttpErrorKind::Timeout => format!("no answer from {endpoint} in time: {root}"),
        _ => format!("the connection to {endpoint} broke: {root}"),
    };
    operation.error(ErrorKind::Unreachable, reason)
}

/// The first cause of that type, the error itself included.
fn cause<T: StdError + 'static>(error: &object_store::Error) -> Option<&T> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref::<T>() {
            return Some(found);
        }
        next = current.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_classified_by_what_the_caller_may_do() {
        for (status, code, kind) in [
            (404, "NoSuchKey", ErrorKind::NotFound),
            (404, "NoSuchBucket", ErrorKind::NotFound),
            (403, "SignatureDoesNotMatch", ErrorKind::Denied),
            (403, "", ErrorKind::Denied),
            (400, "ExpiredToken", ErrorKind::Denied),
            (403, "QuotaExceeded", ErrorKind::Full),
            (507, "", ErrorKind::Full),
            (501, "", ErrorKind::Unsupported),
            (503, "SlowDown", ErrorKind::Unreachable),
            (500, "", ErrorKind::Unreachable),
            (429, "", ErrorKind::Unreachable),
            (400, "RequestTimeout", ErrorKind::Unreachable),
            (409, "ConditionalRequestConflict", ErrorKind::Unreachable),
            (301, "PermanentRedirect", ErrorKind::Usage),
            (400, "AuthorizationHeaderMalformed", ErrorKind::Usage),
            (400, "InvalidArgument", ErrorKind::System),
        ] {
            assert_eq!(kind_of(Some(status), code), kind, "{status} {code}");
        }
    }

    #[test]
    fn a_wrong_region_names_the_right_one() {
        let store = Store {
            bucket: "b",
            endpoint: "https://b.s3.us-east-1.amazonaws.com",
            region: "us-east-1",
            own_virtual_host: false,
        };
        let answer = Answer {
            status: Some(301),
            region: Some("eu-west-3".to_owned()),
            ..Answer::default()
        };
        let (kind, reason) = verdict(
            Operation::read("k"),
            store,
            Some(301),
            "PermanentRedirect",
            "",
            &answer,
        );
        assert_eq!(kind, ErrorKind::Usage);
        assert!(reason.contains("--region eu-west-3"), "{reason}");
    }

    #[test]
    fn system_errors_are_classified_by_what_the_caller_may_do() {
        let create = Operation::create("log/1");
        for (errno, kind) in [
            (rustix::io::Errno::NOSPC, ErrorKind::Full),
            (rustix::io::Errno::DQUOT, ErrorKind::Full),
            (rustix::io::Errno::ROFS, ErrorKind::ReadOnly),
            (rustix::io::Errno::ACCESS, ErrorKind::Denied),
            (rustix::io::Errno::STALE, ErrorKind::Unreachable),
            (rustix::io::Errno::PERM, ErrorKind::Unsupported),
            (rustix::io::Errno::IO, ErrorKind::System),
        ] {
            let error = of_io(create, &io::Error::from_raw_os_error(errno.raw_os_error()));
            assert_eq!(error.kind(), kind, "{errno}");
            assert!(
                error.to_string().starts_with("cannot create log/1: "),
                "{error}"
            );
        }
    }
}
