//! Which disk is meant, and the client of its store: retries over limits over counts over the connection.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;
use crate::object::{
    Connection, Count, Limit, Location, ObjectClient, Patience, Retry, Traffic, connect,
};

/// How long a connection may take to come about, and one answer to come: beyond it the request counts as failed and is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Which disk, and how its store is reached.
#[derive(Debug, Clone)]
pub struct Target {
    location: Location,
    pub(super) connection: Connection,
    pub(super) patience: Duration,
}

/// What may be said about reaching a store beside its URL; where it is `None` or `false`, the environment and the
/// AWS configuration files decide.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The S3 service.
    pub endpoint: Option<String>,
    /// The bucket's region.
    pub region: Option<String>,
    /// The bucket's name goes into the path of requests.
    pub path_style: bool,
    /// The profile to take credentials from.
    pub profile: Option<String>,
    /// How long a request is tried again before it counts as failed.
    pub patience: Duration,
    /// The most requests at once.
    pub requests: usize,
}

impl Target {
    /// Takes a URL and a prefix below it. Contacts nobody.
    ///
    /// # Errors
    /// `Usage`.
    pub fn new(url: &str, prefix: Option<&str>, reach: Reach) -> Result<Target> {
        let location = Location::parse(url)?.with_prefix(prefix.unwrap_or_default())?;
        Ok(Target {
            location,
            connection: Connection {
                endpoint: reach.endpoint,
                region: reach.region,
                path_style: reach.path_style,
                profile: reach.profile,
                request_timeout: REQUEST_TIMEOUT,
                connect_timeout: CONNECT_TIMEOUT,
                requests: reach.requests,
            },
            patience: reach.patience,
        })
    }

    /// The URL, prefix included.
    pub fn url(&self) -> String {
        self.location.to_string()
    }

    /// Where its objects are, servers included: what two copies of one bucket differ in.
    pub(super) fn source(&self) -> String {
        match self.connection.server() {
            Some(server) => format!("{} at {server}", self.location),
            None => self.location.to_string(),
        }
    }

    /// Whether the disk lives in the memory of this process, and so ends with it.
    pub fn is_memory(&self) -> bool {
        matches!(self.location, Location::Memory { .. })
    }
}

/// A client of a target's store, before its requests are limited: how many there may be is known once the block size is.
pub(super) struct Connected {
    counted: Arc<Count>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) patience: Patience,
}

impl Connected {
    pub(super) async fn new(target: &Target) -> Result<Connected> {
        let cloud = connect(&target.location, &target.connection).await?;
        let traffic = Arc::new(Traffic::default());
        Ok(Connected {
            counted: Arc::new(Count::new(cloud, Arc::clone(&traffic))),
            traffic,
            patience: Patience::new(target.patience),
        })
    }

    pub(super) fn with_requests(&self, requests: usize) -> Arc<dyn ObjectClient> {
        let limited = Arc::new(Limit::new(self.counted.clone(), requests));
        Arc::new(Retry::new(
            limited,
            self.patience.clone(),
            Arc::clone(&self.traffic),
            rand::random(),
        ))
    }
}

/// The client of a verb that is done in one go: its user waits no longer for one answer than for the whole.
pub(super) async fn client(target: &Target) -> Result<Arc<dyn ObjectClient>> {
    let mut target = target.clone();
    let longest = &mut target.connection.request_timeout;
    *longest = target.patience.min(*longest);
    let connected = Connected::new(&target).await?;
    Ok(connected.with_requests(target.connection.requests))
}
