//! Which server an S3 bucket is asked of, and how its requests are addressed and signed: options first, then the environment, then
//! the profile, then Amazon's own.

use reqsign_core::Context;

use super::{Connection, ambient};
use crate::error::{Error, ErrorKind, Result};

/// Where requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// What the crate is given: with the bucket's name before the host, or without it.
    pub(super) given: String,
    /// The URL of the bucket.
    pub(super) with_bucket: String,
    /// Whether the bucket's name is before the host.
    pub(super) virtual_host: bool,
    /// The same, at an endpoint that the user gave.
    pub(super) own_virtual_host: bool,
    /// Whether it is plain HTTP.
    pub(super) plain: bool,
}

/// The region to sign for.
pub(super) async fn region(context: &Context, connection: &Connection) -> Result<String> {
    let told = connection
        .region
        .clone()
        .or_else(|| ambient::variable(context, "AWS_REGION"))
        .or_else(|| ambient::variable(context, "AWS_DEFAULT_REGION"));
    let region = match told {
        Some(region) => region,
        None => ambient::profile_region(context, connection.profile.as_deref())
            .await
            .unwrap_or_else(|| "us-east-1".to_owned()),
    };
    // it becomes part of a host name
    if region.is_empty()
        || !region
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    {
        return Err(Error::new(
            ErrorKind::Usage,
            format!(
                "'{}' is not a region: write one such as eu-west-1",
                region.escape_debug()
            ),
        ));
    }
    Ok(region)
}

/// The server that options or environment name.
pub(super) fn told(context: &Context, connection: &Connection) -> Option<String> {
    connection
        .endpoint
        .clone()
        .or_else(|| ambient::variable(context, "AWS_ENDPOINT_URL_S3"))
        .or_else(|| ambient::variable(context, "AWS_ENDPOINT_URL"))
}

/// Where requests for a bucket go.
pub(super) fn endpoint(
    context: &Context,
    connection: &Connection,
    bucket: &str,
    region: &str,
) -> Result<Endpoint> {
    let usage = |text: String| Err(Error::new(ErrorKind::Usage, text));
    let told = told(context, connection);
    let own = told.is_some();
    let domain = match region.starts_with("cn-") {
        true => "amazonaws.com.cn",
        false => "amazonaws.com",
    };
    let url = told.unwrap_or_else(|| format!("https://s3.{region}.{domain}"));
    let url = url.trim_end_matches('/');
    let Some((scheme, rest)) = url.split_once("://") else {
        return usage("the endpoint has no scheme: write https://host[:port]".to_owned());
    };
    let plain = match scheme {
        "https" => false,
        "http" => true,
        _ => {
            return usage(format!(
                "an endpoint of scheme '{scheme}' is not known: write https://host[:port]"
            ));
        }
    };
    if rest.contains('@') {
        return usage(
            "credentials do not belong in a URL: take them out of the endpoint".to_owned(),
        );
    }
    let authority = rest
        .split_once('/')
        .map_or(rest, |(authority, _)| authority);
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or("", |(host, _)| host),
        None => authority
            .split_once(':')
            .map_or(authority, |(host, _)| host),
    };
    let fit = url.parse::<http::Uri>().is_ok();
    if host.is_empty() || rest.contains(['?', '#']) || !fit {
        return usage(
            "the endpoint is not a URL of a server: write https://host[:port]".to_owned(),
        );
    }
    let local = host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<std::net::IpAddr>().is_ok();
    // a dot in the name does not match the certificate's one star
    let name_fits_host = bucket
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (plain && c == '.'));
    let virtual_host = !connection.path_style && !local && name_fits_host;
    let given = match virtual_host {
        true => format!("{scheme}://{bucket}.{rest}"),
        false => format!("{scheme}://{rest}"),
    };
    Ok(Endpoint {
        with_bucket: match virtual_host {
            true => given.clone(),
            false => format!("{given}/{bucket}"),
        },
        given,
        virtual_host,
        own_virtual_host: virtual_host && own,
        plain,
    })
}

#[cfg(test)]
mod tests {
    use reqsign_core::StaticEnv;

    use super::*;

    fn at(endpoint_url: Option<&str>, bucket: &str, path_style: bool) -> Result<Endpoint> {
        let connection = Connection {
            endpoint: endpoint_url.map(str::to_owned),
            path_style,
            ..Connection::default()
        };
        endpoint(&Context::new(), &connection, bucket, "eu-west-1")
    }

    #[test]
    fn the_bucket_goes_before_the_host_unless_the_host_or_the_name_forbids() {
        for (given, bucket, path_style, url) in [
            (None, "b", false, "https://b.s3.eu-west-1.amazonaws.com"),
            (None, "b", true, "https://s3.eu-west-1.amazonaws.com/b"),
            (
                None,
                "my.bucket",
                false,
                "https://s3.eu-west-1.amazonaws.com/my.bucket",
            ),
            (
                None,
                "Old_Bucket",
                false,
                "https://s3.eu-west-1.amazonaws.com/Old_Bucket",
            ),
            (
                Some("https://s3.example.org/"),
                "b",
                false,
                "https://b.s3.example.org",
            ),
            (
                Some("https://s3.example.org:9000"),
                "b",
                true,
                "https://s3.example.org:9000/b",
            ),
            (
                Some("http://127.0.0.1:9000"),
                "b",
                false,
                "http://127.0.0.1:9000/b",
            ),
            (Some("http://[::1]:9000"), "b", false, "http://[::1]:9000/b"),
            (
                Some("http://localhost:9000"),
                "b",
                false,
                "http://localhost:9000/b",
            ),
        ] {
            assert_eq!(at(given, bucket, path_style).expect(url).with_bucket, url);
        }
        assert!(
            at(Some("http://127.0.0.1:9000"), "b", false)
                .expect("plain")
                .plain
        );
        assert!(!at(None, "b", false).expect("TLS").plain);
    }

    #[test]
    fn an_endpoint_that_cannot_be_meant_is_a_usage_error() {
        for wrong in [
            "s3.example.org",
            "ftp://s3.example.org",
            "https://",
            "https://:9000",
            "https://key:secret@host",
            "https://host?x",
            "https://ho st",
        ] {
            let error = at(Some(wrong), "b", false).expect_err(wrong);
            assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn options_win_over_variables_and_variables_over_the_default() {
        let machine = |variables: &[(&str, &str)]| {
            Context::new().with_env(StaticEnv {
                home_dir: None,
                envs: variables
                    .iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                    .collect(),
            })
        };
        let none = Connection::default();
        let both = machine(&[
            ("AWS_REGION", "r1"),
            ("AWS_DEFAULT_REGION", "r2"),
            ("AWS_ENDPOINT_URL", "https://e1.example"),
        ]);
        assert_eq!(
            region(&machine(&[]), &none).await.expect("region"),
            "us-east-1"
        );
        assert_eq!(region(&both, &none).await.expect("region"), "r1");
        let told = Connection {
            region: Some("r3".to_owned()),
            endpoint: Some("https://e3.example".to_owned()),
            ..Connection::default()
        };
        assert_eq!(region(&both, &told).await.expect("region"), "r3");
        let found = endpoint(&both, &none, "b", "r").expect("endpoint");
        assert_eq!(found.with_bucket, "https://b.e1.example");
        let found = endpoint(&both, &told, "b", "r").expect("endpoint");
        assert_eq!(found.with_bucket, "https://b.e3.example");
        let specific = machine(&[
            ("AWS_ENDPOINT_URL", "https://e1.example"),
            ("AWS_ENDPOINT_URL_S3", "https://e2.example"),
        ]);
        let found = endpoint(&specific, &none, "b", "r").expect("endpoint");
        assert_eq!(found.with_bucket, "https://b.e2.example");
    }
}
