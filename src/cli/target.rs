//! From the options that every verb with a URL has to a target.

use super::args::TargetArgs;
use crate::config::DEFAULT_REQUESTS;
use crate::error::{Error, ErrorKind, Result};
use crate::open::{Reach, Target};

impl TargetArgs {
    /// The target, for the given number of requests at once. Contacts nobody.
    ///
    /// # Errors
    /// `Usage`.
    pub fn target_with(&self, requests: usize) -> Result<Target> {
        let reach = Reach {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            path_style: self.path_style,
            profile: self.profile.clone(),
            patience: self.timeout,
            requests,
        };
        Target::new(&self.url, self.prefix.as_deref(), reach)
    }

    /// The target of a verb that is not `mount`.
    ///
    /// # Errors
    /// `Usage`, also for `memory:`: such a disk lives and ends with its mount.
    pub fn target(&self) -> Result<Target> {
        let target = self.target_with(DEFAULT_REQUESTS)?;
        if target.is_memory() {
            return Err(Error::new(
                ErrorKind::Usage,
                "a disk in memory lives and ends with its mount: use 'bucketdisk mount memory: DIR --create --size SIZE'",
            ));
        }
        Ok(target)
    }
}
