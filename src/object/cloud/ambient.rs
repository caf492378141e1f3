//! What a connection takes from the machine that it is made on: environment variables, the AWS configuration file, and the means
//! (files, commands, HTTP) by which credential sources look around.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use reqsign_core::{
    CommandExecute, CommandOutput, Context, Env, Error, FileRead, HttpSend, OsEnv, Result,
    StaticEnv,
};

/// How long a metadata service on the machine's own link may take to be connected to: elsewhere nobody answers.
const METADATA_CONNECT: Duration = Duration::from_secs(1);
/// How long it may take to answer.
const METADATA_ANSWER: Duration = Duration::from_secs(3);
/// How long other credential services may take to be connected to, and to answer.
const SERVICE_CONNECT: Duration = Duration::from_secs(5);
const SERVICE_ANSWER: Duration = Duration::from_secs(20);

/// The variables and the home directory that a connection goes by where its options say nothing.
#[derive(Clone)]
pub struct Environment(Context);

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Environment {
        Environment(machine().with_env(NotEmpty(OsEnv)))
    }

    /// These variables and no others; without a home directory there are no profile files.
    pub fn fixed(home: Option<PathBuf>, variables: HashMap<String, String>) -> Environment {
        Environment(machine().with_env(NotEmpty(StaticEnv {
            home_dir: home,
            envs: variables,
        })))
    }

    /// As credential sources see it.
    pub(super) fn context(&self) -> &Context {
        &self.0
    }
}

impl fmt::Debug for Environment {
    /// Variables carry secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Environment")
    }
}

/// An environment in which an empty variable is one that is not set, as in the AWS tools: an empty key is no credential.
#[derive(Debug)]
struct NotEmpty<E>(E);

impl<E: Env> Env for NotEmpty<E> {
    fn var(&self, key: &str) -> Option<String> {
        self.0.var(key).filter(|value| !value.is_empty())
    }

    fn vars(&self) -> HashMap<String, String> {
        let mut vars = self.0.vars();
        vars.retain(|_, value| !value.is_empty());
        vars
    }

    fn home_dir(&self) -> Option<PathBuf> {
        self.0.home_dir()
    }
}

fn machine() -> Context {
    Context::new()
        .with_file_read(Files)
        .with_command_execute(Commands)
        .with_http_send(Web)
}

/// A variable that is set and not empty.
pub(super) fn variable(context: &Context, name: &str) -> Option<String> {
    context.env_var(name).filter(|value| !value.is_empty())
}

/// The region that the profile (the named one, else `AWS_PROFILE`, else `default`) gives in `~/.aws/config`.
pub(super) async fn profile_region(context: &Context, profile: Option<&str>) -> Option<String> {
    let profile = match profile {
        Some(profile) => profile.to_owned(),
        None => variable(context, "AWS_PROFILE").unwrap_or_else(|| "default".to_owned()),
    };
    let path = variable(context, "AWS_CONFIG_FILE").unwrap_or_else(|| "~/.aws/config".to_owned());
    let text = context
        .file_read_as_string(&context.expand_home_dir(&path)?)
        .await
        .ok()?;
    setting(&text, &profile, "region")
}

/// One setting of one profile. Indented lines belong to a nested setting and are passed over.
fn setting(text: &str, profile: &str, name: &str) -> Option<String> {
    let mut ours = false;
    for line in text.lines() {
        if let Some(section) = line
            .trim()
            .strip_prefix('[')
            .and_then(|s| s.split_once(']'))
        {
            let mut words = section.0.split_whitespace();
            ours = match (words.next(), words.next()) {
                (Some("profile"), Some(named)) => named.trim_matches(['"', '\'']) == profile,
                (Some("default"), None) => profile == "default",
                _ => false,
            };
        } else if ours && !line.starts_with([' ', '\t', '#', ';']) {
            let value = line
                .split_once('=')
                .filter(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned());
            if value.as_ref().is_some_and(|value| !value.is_empty()) {
                return value;
            }
        }
    }
    None
}

#[derive(Debug)]
struct Files;

impl FileRead for Files {
    async fn file_read(&self, path: &str) -> Result<Vec<u8>> {
        tokio::fs::read(path)
            .await
            .map_err(|error| Error::unexpected(format!("cannot read {path}")).with_source(error))
    }
}

#[derive(Debug)]
struct Commands;

impl CommandExecute for Commands {
    async fn command_execute<'a>(
        &'a self,
        program: &'a str,
        args: &'a [&'a str],
    ) -> Result<CommandOutput> {
        let output = tokio::process::Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| Error::config_invalid(format!("cannot run {program}: {error}")))?;
        Ok(CommandOutput {
            status: output.status.code().unwrap_or(-1),
            stdout: output.stdout,
            stderr: output.stderr,
        })
    }
}

#[derive(Debug)]
struct Web;

impl HttpSend for Web {
    async fn http_send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>> {
        let metadata = request.uri().host().is_some_and(is_metadata_host);
        let plain = request.uri().scheme_str() == Some("http");
        let unreachable = |error: &dyn std::error::Error| {
            Error::unexpected(format!("no answer: {error}")).set_retryable(true)
        };
        let client = client(metadata, plain).map_err(|error| unreachable(&error))?;
        let response = client
            .execute(request.map(Into::into))
            .await
            .map_err(|error| unreachable(&error))?;
        let (parts, body) = response.into_parts();
        let body = body.bytes().await.map_err(|error| unreachable(&error))?;
        Ok(http::Response::from_parts(parts, body))
    }
}

/// A client for one request: credentials are fetched once an hour at most.
fn client(metadata: bool, plain: bool) -> object_store::Result<HttpClient> {
    let (connect, answer) = match metadata {
        true => (METADATA_CONNECT, METADATA_ANSWER),
        false => (SERVICE_CONNECT, SERVICE_ANSWER),
    };
    let options = ClientOptions::new()
        .with_connect_timeout(connect)
        .with_timeout(answer)
        .with_allow_http(plain)
        // without TLS no certificates are needed, and a machine may have none
        .with_no_system_certificates(plain);
    ReqwestConnector::default().connect(&options)
}

fn is_metadata_host(host: &str) -> bool {
    host.starts_with("169.254.") || host.eq_ignore_ascii_case("[fd00:ec2::254]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_s_region_is_read_from_its_own_section() {
        let text = "[default]\nregion = eu-west-1\n# region = x\n[profile work]\ns3 =\n  region = nested\n\
                    region=us-west-2\n[profile \"two words\"]\n[sso-session work]\nregion = no\n";
        assert_eq!(
            setting(text, "default", "region").as_deref(),
            Some("eu-west-1")
        );
        assert_eq!(
            setting(text, "work", "region").as_deref(),
            Some("us-west-2")
        );
        assert_eq!(setting(text, "other", "region"), None);
    }
}
