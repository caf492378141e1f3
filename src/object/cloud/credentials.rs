//! Who asks: the standard AWS chain of credential sources, cached until shortly before they expire.
//!
//! The sources are those of `reqsign`, run in the usual order: environment, profile files, SSO, web identity, credential process,
//! container, instance metadata (IMDSv2). Where a profile is named on the command line only the profile's own sources count. The
//! first source that is configured decides: one that fails is an error, not a reason to go on as somebody else. No secret is
//! logged, printed, or part of an error.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider,
    EnvCredentialProvider, IMDSv2CredentialProvider, ProcessCredentialProvider,
    ProfileCredentialProvider, SSOCredentialProvider,
};
use reqsign_core::{Context, ProvideCredentialDyn};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};

/// Renewed when they have less than this left.
const RENEW_BEFORE: Duration = Duration::from_secs(5 * 60);
/// Not fetched more often than this while those at hand are still good: a source may hand out the same ones again.
const FETCH_DISTANCE: Duration = Duration::from_secs(15);
/// Credentials refused this soon after they were fetched are wrong, not stale.
const FRESH: Duration = Duration::from_secs(60);

/// The chain and what it last answered.
pub(super) struct Credentials {
    sources: Vec<Source>,
    context: Context,
    profile: Option<String>,
    /// An async lock, held while fetching: of many requests at once one fetches and the others wait for it.
    held: tokio::sync::Mutex<Held>,
    /// How many times credentials were fetched.
    fetches: AtomicU64,
}

struct Source {
    name: &'static str,
    /// Whether failing only means that this machine has not got it.
    optional: bool,
    provider: Box<dyn ProvideCredentialDyn<Credential = Credential>>,
}

#[derive(Default)]
struct Held {
    credential: Option<Arc<AwsCredential>>,
    expires: Option<SystemTime>,
    fetched: Option<Instant>,
    /// Whether any were ever had: from then on, having none may pass.
    had: bool,
}

impl Credentials {
    /// The chain, run in `context`; only the named profile's sources where there is one.
    pub(super) fn new(context: Context, profile: Option<String>) -> Credentials {
        let mut sources = Vec::new();
        let mut add = |name, optional, provider| {
            sources.push(Source {
                name,
                optional,
                provider,
            });
        };
        let mut files = ProfileCredentialProvider::new();
        let mut sso = SSOCredentialProvider::new();
        let mut process = ProcessCredentialProvider::new();
        if let Some(profile) = &profile {
            files = files.with_profile(profile);
            sso = sso.with_profile(profile);
            process = process.with_profile(profile);
        } else {
            add(
                "environment",
                false,
                Box::new(EnvCredentialProvider::new()) as _,
            );
        }
        add("profile", false, Box::new(files));
        add("single sign-on", false, Box::new(sso));
        if profile.is_none() {
            add(
                "web identity",
                false,
                Box::<AssumeRoleWithWebIdentityCredentialProvider>::default(),
            );
        }
        add("credential process", false, Box::new(process));
        if profile.is_none() {
            add("container", false, Box::new(ECSCredentialProvider::new()));
            add(
                "instance metadata",
                true,
                Box::new(IMDSv2CredentialProvider::new()),
            );
        }
        Credentials {
            sources,
            context,
            profile,
            held: tokio::sync::Mutex::default(),
            fetches: AtomicU64::new(0),
        }
    }

    /// Which fetch the credentials at hand are from; to be asked for before a request and told to [`Credentials::forget`].
    pub(super) fn generation(&self) -> u64 {
        self.fetches.load(Ordering::Acquire)
    }

    /// The credentials to sign with now.
    ///
    /// # Errors
    /// `Denied` where no source has any; `Unreachable` where the source of these may answer later.
    pub(super) async fn get(&self) -> Result<Arc<AwsCredential>> {
        let mut held = self.held.lock().await;
        let left = held
            .expires
            .map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let asked_just_now = held.fetched.is_some_and(|at| at.elapsed() < FETCH_DISTANCE);
        if let Some(credential) = &held.credential {
            let good = left.is_none_or(|left| left > RENEW_BEFORE);
            let still_good = left.is_none_or(|left| left > FETCH_DISTANCE);
            if good || (still_good && asked_just_now) {
                return Ok(Arc::clone(credential));
            }
        }
        held.fetched = Some(Instant::now());
        match self.fetch(held.had).await {
            Ok(fetched) => {
                let credential = Arc::new(AwsCredential {
                    key_id: fetched.access_key_id,
                    secret_key: fetched.secret_access_key,
                    token: fetched.session_token,
                });
                held.had = true;
                self.fetches.fetch_add(1, Ordering::Release);
                held.expires = fetched.expires_in.map(|at| at.as_system_time());
                held.credential = Some(Arc::clone(&credential));
                Ok(credential)
            }
            Err(error) => match &held.credential {
                Some(credential) if left.is_some_and(|left| !left.is_zero()) => {
                    tracing::warn!(error = error.chain(), "cannot renew credentials yet");
                    Ok(Arc::clone(credential))
                }
                _ => Err(error),
            },
        }
    }

    /// Forgets credentials that the store refused as expired or unknown; `generation` is that of the refused ones. Answers whether
    /// asking again is worth while: not where the refused ones were fetched just now.
    pub(super) async fn forget(&self, generation: u64) -> bool {
        let mut held = self.held.lock().await;
        if self.generation() != generation {
            return true;
        }
        let fresh = held.fetched.is_some_and(|at| at.elapsed() < FRESH);
        if !fresh {
            held.credential = None;
            held.expires = None;
        }
        !fresh
    }

    /// Asks the sources in their order.
    async fn fetch(&self, had: bool) -> Result<Credential> {
        for source in &self.sources {
            match source.provider.provide_credential_dyn(&self.context).await {
                Ok(Some(credential)) => {
                    tracing::debug!(source = source.name, "credentials found");
                    return Ok(credential);
                }
                Ok(None) => {}
                Err(error) if source.optional => {
                    tracing::debug!(source = source.name, error = %error, "no credentials there");
                }
                Err(error) => {
                    let kind = match error.is_retryable() || had {
                        true => ErrorKind::Unreachable,
                        false => ErrorKind::Denied,
                    };
                    return Err(Error::new(
                        kind,
                        self.failure(source.name, &error.to_string()),
                    ));
                }
            }
        }
        if had {
            return Err(Error::new(
                ErrorKind::Unreachable,
                "credentials cannot be renewed: their source has none now",
            ));
        }
        Err(Error::new(ErrorKind::Denied, self.none()))
    }

    fn failure(&self, source: &str, text: &str) -> String {
        // what follows the colon of this one may quote the output that could not be read, secrets and all
        let text = match text.split_once(": ") {
            Some((what, _)) if what.starts_with("failed to parse") => what,
            _ => text,
        };
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(300)
            .collect();
        match &self.profile {
            Some(profile) => format!("no credentials from {source} of profile {profile}: {text}"),
            None => format!("no credentials from {source}: {text}"),
        }
    }

    fn none(&self) -> String {
        match &self.profile {
            Some(profile) => format!(
                "profile {profile} has no credentials: put aws_access_key_id and aws_secret_access_key, credential_process or \
                 single sign-on under it in ~/.aws/credentials or ~/.aws/config"
            ),
            None => "no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile of ~/.aws/credentials \
                     with --profile or AWS_PROFILE, or run where a container or instance role gives them"
                .to_owned(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        self.get()
            .await
            .map_err(|error| object_store::Error::Generic {
                store: "S3",
                source: Box::new(error),
            })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;

    use super::*;
    use crate::object::cloud::Environment;

    /// A machine with these variables, this home and no metadata service.
    fn machine(home: &Path, variables: &[(&str, &str)]) -> Context {
        let mut envs: HashMap<String, String> = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        envs.insert("AWS_EC2_METADATA_DISABLED".to_owned(), "true".to_owned());
        Environment::fixed(Some(home.to_owned()), envs)
            .context()
            .clone()
    }

    fn home(config: &str, credentials: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().expect("home");
        std::fs::create_dir(home.path().join(".aws")).expect("directory");
        std::fs::write(home.path().join(".aws/config"), config).expect("config");
        std::fs::write(home.path().join(".aws/credentials"), credentials).expect("credentials");
        home
    }

    #[tokio::test]
    async fn keys_in_the_environment_win_over_the_default_profile() {
        let home = home(
            "",
            "[default]\naws_access_key_id=FILE\naws_secret_access_key=s\n",
        );
        let variables = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let chain = Credentials::new(machine(home.path(), &variables), None);
        assert_eq!(chain.get().await.expect("credentials").key_id, "ENV");
    }

    #[tokio::test]
    async fn a_named_profile_wins_over_the_environment() {
        let home = home(
            "",
            "[work]\naws_access_key_id=WORK\naws_secret_access_key=s\n",
        );
        let variables = [("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "s")];
        let chain = Credentials::new(machine(home.path(), &variables), Some("work".to_owned()));
        assert_eq!(chain.get().await.expect("credentials").key_id, "WORK");
    }

    #[tokio::test]
    async fn a_credential_process_is_run() {
        let home = tempfile::tempdir().expect("home");
        let answer = home.path().join("answer");
        std::fs::write(
            &answer,
            r#"{"Version":1,"AccessKeyId":"PROC","SecretAccessKey":"s","SessionToken":"t"}"#,
        )
        .expect("answer");
        std::fs::create_dir(home.path().join(".aws")).expect("directory");
        std::fs::write(
            home.path().join(".aws/config"),
            format!(
                "[profile p]\ncredential_process = cat {}\n",
                answer.display()
            ),
        )
        .expect("config");
        let chain = Credentials::new(machine(home.path(), &[("AWS_PROFILE", "p")]), None);
        let credential = chain.get().await.expect("credentials");
        assert_eq!(credential.key_id, "PROC");
        assert_eq!(credential.token.as_deref(), Some("t"));
    }

    #[tokio::test]
    async fn a_failing_source_is_named_and_its_output_is_not_repeated() {
        let home = tempfile::tempdir().expect("home");
        let answer = home.path().join("answer");
        std::fs::write(
            &answer,
            r#"{"Version":1,"AccessKeyId":"PROC","SecretAccessKey":31337}"#,
        )
        .expect("answer");
        std::fs::create_dir(home.path().join(".aws")).expect("directory");
        std::fs::write(
            home.path().join(".aws/config"),
            format!("[default]\ncredential_process = cat {}\n", answer.display()),
        )
        .expect("config");
        let chain = Credentials::new(machine(home.path(), &[]), None);
        let error = chain.get().await.expect_err("no credentials");
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(
            error.chain().contains("credential process"),
            "{}",
            error.chain()
        );
        assert!(!error.chain().contains("31337"), "{}", error.chain());
    }

    #[tokio::test]
    async fn no_source_at_all_is_denied_in_one_line_that_says_what_to_set() {
        let home = tempfile::tempdir().expect("home");
        let error = Credentials::new(machine(home.path(), &[]), None)
            .get()
            .await
            .expect_err("no credentials");
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(
            error.to_string().contains("set AWS_ACCESS_KEY_ID"),
            "{error}"
        );
        let named = Credentials::new(machine(home.path(), &[]), Some("nobody".to_owned()));
        let error = named.get().await.expect_err("no such profile");
        assert!(
            error.to_string().starts_with("profile nobody has no"),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn refused_credentials_are_fetched_again_unless_they_are_fresh() {
        let keys =
            |name: &str| format!("[default]\naws_access_key_id={name}\naws_secret_access_key=s\n");
        let home = home("", &keys("OLD"));
        let chain = Credentials::new(machine(home.path(), &[]), None);
        assert_eq!(chain.get().await.expect("credentials").key_id, "OLD");
        std::fs::write(home.path().join(".aws/credentials"), keys("NEW")).expect("credentials");
        assert!(!chain.forget(chain.generation()).await);
        assert_eq!(chain.get().await.expect("credentials").key_id, "OLD");
        tokio::time::advance(FRESH).await;
        assert!(chain.forget(chain.generation()).await);
        assert_eq!(chain.get().await.expect("credentials").key_id, "NEW");
        assert!(
            chain.forget(1).await,
            "a request that was signed with the old ones is worth another try"
        );
        assert_eq!(chain.get().await.expect("credentials").key_id, "NEW");
    }
}
