//! What the server said: status, error code and the headers that `object_store` does not hand on.
//!
//! [`connect`] makes an HTTP client that notes every answer that is no success, and [`noting`] runs one call and hands out the note
//! with its result. The note travels in a task-local: the calls of `object_store` run on the task that polls them.

use std::cell::RefCell;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use reqsign_core::time::Timestamp;

tokio::task_local! {
    static NOTE: RefCell<Answer>;
}

/// The last answer of a call that was no success; empty where the server gave none.
#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    /// The HTTP status.
    pub(super) status: Option<u16>,
    /// The S3 error code; empty where the body has none.
    pub(super) code: String,
    /// The S3 error message; empty where the body has none.
    pub(super) message: String,
    /// How long the server asked to be left alone for.
    pub(super) retry_after: Option<Duration>,
    /// The region that the bucket is in, where the server tells.
    pub(super) region: Option<String>,
}

impl Answer {
    fn of(parts: &http::response::Parts, body: &str, now: SystemTime) -> Answer {
        let header = |name: &str| {
            parts
                .headers
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        Answer {
            status: Some(parts.status.as_u16()),
            code: element(body, "Code").unwrap_or_default(),
            message: element(body, "Message").unwrap_or_default(),
            retry_after: header("retry-after").and_then(|text| retry_after(text, now)),
            region: header("x-amz-bucket-region")
                .map(str::to_owned)
                .or_else(|| element(body, "Region")),
        }
    }
}

/// Runs one call of `object_store` and answers its result with what the server said.
pub(super) async fn noting<F: Future>(call: F) -> (F::Output, Answer) {
    NOTE.scope(RefCell::default(), async {
        let output = call.await;
        (output, NOTE.with(RefCell::take))
    })
    .await
}

/// A connector whose clients note what servers say; all share one pool of connections.
pub(super) fn connect(options: &ClientOptions) -> object_store::Result<NotingConnector> {
    let inner = ReqwestConnector::default().connect(options)?;
    Ok(NotingConnector(HttpClient::new(Noting(inner))))
}

/// Hands out the one client.
#[derive(Debug, Clone)]
pub(super) struct NotingConnector(HttpClient);

impl HttpConnector for NotingConnector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

#[derive(Debug)]
struct Noting(HttpClient);

#[async_trait]
impl HttpService for Noting {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.execute(request).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let body = body.bytes().await?;
        let answer = Answer::of(&parts, &String::from_utf8_lossy(&body), SystemTime::now());
        // outside of `noting` there is nobody to tell
        let _ = NOTE.try_with(|note| note.replace(answer));
        Ok(HttpResponse::from_parts(parts, body.into()))
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3); a date that has passed means now.
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = Timestamp::parse_rfc2822(text).ok()?.as_system_time();
    Some(at.duration_since(now).unwrap_or_default())
}

/// The text of the first XML element of that name, on one line and of a length fit for a message.
pub(super) fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let line: String = text
        .trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(200)
        .collect();
    Some(line).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("7", now), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now),
            Some(Duration::from_secs(10))
        );
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:49:27 GMT", now),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-3", now), None);
    }

    #[test]
    fn code_and_message_are_read_from_an_error_body() {
        let body = "<?xml version=\"1.0\"?>\n<Error><Code>SlowDown</Code><Message>Please\nreduce</Message></Error>";
        assert_eq!(element(body, "Code").as_deref(), Some("SlowDown"));
        assert_eq!(element(body, "Message").as_deref(), Some("Please reduce"));
        assert_eq!(element(body, "Region"), None);
        assert_eq!(element("<Code>", "Code"), None);
        assert_eq!(element("<html>busy</html>", "Code"), None);
    }
}
