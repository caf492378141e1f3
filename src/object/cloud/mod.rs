//! Real stores behind the contract: S3, a directory, memory, all through the `object_store` crate.
//!
//! [`connect`] is the door. Nothing here retries: the crate's own retries are off, and every failure is classified once, in
//! `errors`. Credentials never come from the command line or the URL, and never leave `credentials`.

use std::sync::Arc;
use std::time::Duration;

use object_store::path::Path;

use super::{Location, ObjectClient};
use crate::error::Result;

mod ambient;
mod answer;
mod credentials;
mod endpoint;
mod errors;
mod files;
mod memory;
mod s3;

pub use ambient::Environment;
use errors::Operation;

/// How to reach a store. Only S3 stores look at any of it.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The server's URL, `https://host[:port]`; plain HTTP only where it says `http://`. `None` means `AWS_ENDPOINT_URL_S3`, else
    /// `AWS_ENDPOINT_URL`, else Amazon's own.
    pub endpoint: Option<String>,
    /// The region that requests are signed for. `None` means `AWS_REGION`, else `AWS_DEFAULT_REGION`, else the profile's, else
    /// `us-east-1`.
    pub region: Option<String>,
    /// Whether the bucket's name goes into the path instead of before the host. It does in any case where the endpoint is an IP
    /// address or `localhost`, or the bucket's name is not fit for a host name.
    pub path_style: bool,
    /// The profile of `~/.aws` whose credentials count; `None` means the whole chain, with `AWS_PROFILE`.
    pub profile: Option<String>,
    /// How long a request may take, its body included.
    pub request_timeout: Duration,
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// The most requests that will be under way at once: as many idle connections are kept.
    pub requests: usize,
}

impl Connection {
    /// The server that S3 requests go to, as it was named; `None` where that is Amazon's own.
    pub fn server(&self) -> Option<String> {
        endpoint::told(Environment::of_process().context(), self)
    }
}

impl Default for Connection {
    fn default() -> Self {
        Connection {
            endpoint: None,
            region: None,
            path_style: false,
            profile: None,
            request_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            requests: 32,
        }
    }
}

/// Makes a client for a location. It does not ask an S3 store anything yet, and asks credential sources once.
///
/// # Errors
/// `Usage` for an endpoint or region that cannot be meant; `NotFound` where the directory of a `file:` location is not there;
/// `Denied` where there are no credentials, or the directory may not be read.
pub async fn connect(
    location: &Location,
    connection: &Connection,
) -> Result<Arc<dyn ObjectClient>> {
    connect_in(location, connection, &Environment::of_process()).await
}

/// The same, with another environment than that of this process.
///
/// # Errors
/// Those of [`connect`].
pub async fn connect_in(
    location: &Location,
    connection: &Connection,
    environment: &Environment,
) -> Result<Arc<dyn ObjectClient>> {
    let url = location.to_string();
    Ok(match location {
        Location::S3 { bucket, prefix } => {
            Arc::new(s3::S3Client::connect(bucket, prefix, url, connection, environment).await?)
        }
        Location::File { directory, prefix } => {
            Arc::new(files::FileClient::connect(directory, prefix, url).await?)
        }
        Location::Memory { prefix } => Arc::new(memory::MemoryClient::new(prefix, url)),
    })
}

/// Between keys relative to the root and the full keys of the store.
#[derive(Debug, Clone)]
struct Root {
    /// Empty, or ending in `/`.
    prefix: String,
}

impl Root {
    fn new(prefix: &str) -> Root {
        Root {
            prefix: match prefix {
                "" => String::new(),
                prefix => format!("{prefix}/"),
            },
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The crate's name of a key.
    ///
    /// # Errors
    /// `Usage` for a key that no part of this program makes: with empty, `.` or `..` parts.
    fn path(&self, operation: Operation<'_>, key: &str) -> Result<Path> {
        let full = self.full(key);
        match Path::parse(&full) {
            // parsing drops slashes at the ends, and so could name another object
            Ok(path) if path.as_ref() == full && !key.is_empty() => Ok(path),
            _ => Err(operation.error(crate::error::ErrorKind::Usage, "this is not a key")),
        }
    }

    /// The relative key of a full one; `None` for what lies outside of the root.
    fn relative<'a>(&self, full: &'a str) -> Option<&'a str> {
        full.strip_prefix(&self.prefix)
    }
}
