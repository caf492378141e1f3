//! S3 and what speaks like it.
//!
//! One call of the contract is one request, except that a listing goes on where a page holds nothing of use, and that bulk deletes
//! become single ones, for good, on a store that has no bulk delete. Bodies are signed only over plain HTTP: TLS protects them
//! otherwise, and hashing costs more than the rest of a put.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig};

use super::answer::{Answer, noting};
use super::credentials::Credentials;
use super::endpoint::{self, Endpoint};
use super::errors::{Operation, Store, of_store};
use super::{Connection, Environment, Root, answer};
use crate::error::{Error, ErrorKind, Result};
use crate::object::{BATCH, ListPage, ObjectClient, ObjectEntry, PutOutcome};

/// Single deletes that stand for one bulk delete run this many at a time.
const SINGLE_DELETES_AT_ONCE: usize = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct S3Client {
    store: AmazonS3,
    /// The same store, told to delete one object at a time.
    singles: AmazonS3,
    no_bulk_delete: AtomicBool,
    credentials: Arc<Credentials>,
    root: Root,
    bucket: String,
    region: String,
    endpoint: Endpoint,
    location: String,
}

impl S3Client {
    pub(super) async fn connect(
        bucket: &str,
        prefix: &str,
        location: String,
        connection: &Connection,
        environment: &Environment,
    ) -> Result<S3Client> {
        let context = environment.context();
        let region = endpoint::region(context, connection).await?;
        let endpoint = endpoint::endpoint(context, connection, bucket, &region)?;
        let profile = connection.profile.clone();
        let credentials = Arc::new(Credentials::new(context.clone(), profile));
        match credentials.get().await {
            // what may pass is left to the first request
            Err(error) if !error.kind().is_transient() => return Err(error),
            _ => {}
        }
        let options = ClientOptions::new()
            .with_timeout(connection.request_timeout)
            .with_connect_timeout(connection.connect_timeout)
            .with_pool_max_idle_per_host(connection.requests)
            .with_allow_http(endpoint.plain)
            // without TLS no certificates are needed, and a machine may have none
            .with_no_system_certificates(endpoint.plain);
        let built = || {
            let connector = answer::connect(&options)?;
            let builder = AmazonS3Builder::new()
                .with_bucket_name(bucket)
                .with_region(&region)
                .with_endpoint(&endpoint.given)
                .with_virtual_hosted_style_request(endpoint.virtual_host)
                .with_credentials(Arc::clone(&credentials) as _)
                .with_client_options(options.clone())
                .with_http_connector(connector)
                .with_conditional_put(S3ConditionalPut::ETagMatch)
                .with_unsigned_payload(!endpoint.plain)
                .with_retry(RetryConfig {
                    max_retries: 0,
                    ..RetryConfig::default()
                });
            let singles = builder.clone().with_disable_bulk_delete(true).build()?;
            Ok((builder.build()?, singles))
        };
        let (store, singles) = built().map_err(|error: object_store::Error| {
            Error::new(
                ErrorKind::System,
                format!("cannot set up a client for {location}"),
            )
            .with_source(error)
        })?;
        tracing::debug!(
            bucket,
            region,
            endpoint = endpoint.with_bucket,
            "S3 client set up"
        );
        Ok(S3Client {
            store,
            singles,
            no_bulk_delete: AtomicBool::new(false),
            credentials,
            root: Root::new(prefix),
            bucket: bucket.to_owned(),
            region,
            endpoint,
            location,
        })
    }

    /// Runs one call and classifies its failure.
    async fn call<T>(
        &self,
        operation: Operation<'_>,
        call: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failed> {
        let generation = self.credentials.generation();
        let (result, answer) = noting(call).await;
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let store = Store {
            bucket: &self.bucket,
            endpoint: &self.endpoint.with_bucket,
            region: &self.region,
            own_virtual_host: self.endpoint.own_virtual_host,
        };
        let mut error = of_store(operation, store, error, &answer);
        let stale = matches!(
            answer.code.as_str(),
            "ExpiredToken" | "InvalidAccessKeyId" | "InvalidToken" | "TokenRefreshRequired"
        );
        if stale && self.credentials.forget(generation).await {
            // with new credentials the same request may be granted
            error = Error::new(
                ErrorKind::Unreachable,
                format!("{error}: renewing credentials"),
            );
        }
        tracing::debug!(
            status = answer.status,
            code = answer.code,
            error = error.chain(),
            "request failed"
        );
        Err(Failed { error, answer })
    }

    async fn delete_batch(&self, keys: &[String]) -> Result<()> {
        let Some(first) = keys.first() else {
            return Ok(());
        };
        let paths: Vec<Path> = keys
            .iter()
            .map(|key| self.root.path(Operation::delete(key), key))
            .collect::<Result<_>>()?;
        if !self.no_bulk_delete.load(Ordering::Relaxed) {
            let stream = stream::iter(paths.clone().into_iter().map(Ok)).boxed();
            let deleted = self
                .store
                .delete_stream(stream)
                .try_for_each(|_| async { Ok(()) });
            match self.call(Operation::delete(first), deleted).await {
                Ok(()) => return Ok(()),
                Err(failed) if failed.error.kind() == ErrorKind::Unsupported => {
                    tracing::info!(store = %self.location, "no bulk delete here, deleting one by one");
                    self.no_bulk_delete.store(true, Ordering::Relaxed);
                }
                Err(failed) => return Err(failed.error),
            }
        }
        let mut deletes = Vec::with_capacity(keys.len());
        for (key, path) in keys.iter().zip(&paths) {
            deletes.push(self.delete_one(key, path));
        }
        stream::iter(deletes)
            .buffer_unordered(SINGLE_DELETES_AT_ONCE)
            .try_for_each(|()| async { Ok(()) })
            .await
    }

    async fn delete_one(&self, key: &str, path: &Path) -> Result<()> {
        match self
            .call(Operation::delete(key), self.singles.delete(path))
            .await
        {
            Ok(()) => Ok(()),
            Err(failed) if failed.is_absent_object() => Ok(()),
            Err(failed) => Err(failed.error),
        }
    }
}

/// A failed call: the error, and the server's answer for those who want to look at it.
struct Failed {
    error: Error,
    answer: Answer,
}

impl Failed {
    fn is_absent_object(&self) -> bool {
        self.answer.status == Some(404) && self.answer.code != "NoSuchBucket"
    }

    /// Whether a conditional put found an object. 304 is what some stores answer.
    fn is_unmet_condition(&self) -> bool {
        matches!(self.answer.status, Some(304 | 412))
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        failed.error
    }
}

#[async_trait]
impl ObjectClient for S3Client {
    async fn get(&self, key: &str) -> Result<Bytes> {
        let operation = Operation::read(key);
        let path = self.root.path(operation, key)?;
        let body = async { self.store.get(&path).await?.bytes().await };
        Ok(self.call(operation, body).await?)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let operation = Operation::write(key);
        let path = self.root.path(operation, key)?;
        let put = self.store.put(&path, PutPayload::from_bytes(body));
        self.call(operation, put).await?;
        Ok(())
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<PutOutcome> {
        let operation = Operation::create(key);
        let path = self.root.path(operation, key)?;
        let payload = PutPayload::from_bytes(body);
        let put = self.store.put_opts(&path, payload, PutMode::Create.into());
        match self.call(operation, put).await {
            Ok(_) => Ok(PutOutcome::Created),
            Err(failed) if failed.is_unmet_condition() => Ok(PutOutcome::Exists),
            Err(failed) => Err(failed.error),
        }
    }

    async fn delete_many(&self, keys: &[String]) -> Result<()> {
        for batch in keys.chunks(BATCH) {
            self.delete_batch(batch).await?;
        }
        Ok(())
    }

    async fn list(&self, folder: &str, after: Option<&str>) -> Result<ListPage> {
        let prefix = Some(self.root.full(folder)).filter(|prefix| !prefix.is_empty());
        let mut page_token = None;
        loop {
            let options = PaginatedListOptions {
                offset: after.map(|after| self.root.full(after)),
                max_keys: Some(BATCH),
                page_token,
                ..PaginatedListOptions::default()
            };
            let page = self.store.list_paginated(prefix.as_deref(), options);
            let page = self.call(Operation::list(folder), page).await?;
            let mut entries: Vec<ObjectEntry> = page
                .result
                .objects
                .into_iter()
                .filter_map(|meta| {
                    let key = self.root.relative(meta.location.as_ref())?;
                    // folder markers lose their slash on the way here, and some stores do not know `start-after`
                    let wanted = key.starts_with(folder) && after.is_none_or(|after| key > after);
                    wanted.then(|| ObjectEntry {
                        key: key.to_owned(),
                        size_bytes: meta.size,
                        modified: meta.last_modified.into(),
                    })
                })
                .collect();
            let more = page.page_token.is_some();
            if !entries.is_empty() || !more {
                entries.sort_by(|a, b| a.key.cmp(&b.key));
                return Ok(ListPage { entries, more });
            }
            page_token = page.page_token;
        }
    }

    fn location(&self) -> String {
        self.location.clone()
    }
}
